"""POST /v1/moderations with a fake engine: OpenAI's shape, read by OpenAI's client, alone and in batches."""

import asyncio
import json
import math

import openai
import pytest

from tests.server.conftest import check_error

PATH = "/v1/moderations"
LABELS = {"labels": ("safe", "hate", "self-harm/intent")}


def logits(*shares):
    return [math.log(share) for share in shares]


@pytest.fixture
async def moderator(serve_heads, scripted):
    texts = {"fine": logits(0.8, 0.1, 0.1), "vile": logits(0.1, 0.7, 0.2), "fine\nvile": logits(0.3, 0.3, 0.4)}
    return await serve_heads(scripted(texts), info=LABELS)


async def test_the_answer_is_openais(moderator):
    answer = await moderator.ask(PATH, input="vile", model="tiny")
    assert answer.pop("id").startswith("modr-")
    assert answer == {
        "model": "tiny",
        "results": [
            {
                "flagged": True,
                "categories": {"safe": False, "hate": True, "self-harm/intent": False},
                "category_scores": pytest.approx({"safe": 0.1, "hate": 0.7, "self-harm/intent": 0.2}, abs=1e-6),
                "category_applied_input_types": {"safe": ["text"], "hate": ["text"], "self-harm/intent": ["text"]},
            }
        ],
    }


async def test_openais_client_reads_it(moderator):
    client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=moderator.http, max_retries=0)
    answer = await client.moderations.create(input=["fine", "vile"])
    assert [result.flagged for result in answer.results] == [False, True]
    assert answer.results[1].categories.hate is True
    assert answer.results[1].categories.self_harm_intent is False
    assert answer.results[1].category_scores.hate == pytest.approx(0.7)
    assert answer.results[1].category_applied_input_types.self_harm_intent == ["text"]
    parts = [{"type": "text", "text": "fine"}, {"type": "text", "text": "vile"}]
    [result] = (await client.moderations.create(model="tiny", input=parts)).results
    assert result.flagged, "all labels but the safe one say so together"
    assert result.categories.self_harm_intent is True
    with pytest.raises(openai.BadRequestError) as caught:
        await client.moderations.create(input=[{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])
    assert caught.value.param == "input"
    with pytest.raises(openai.NotFoundError):
        await client.moderations.create(input="fine", model="omni-moderation-latest")


async def test_the_settings_say_what_is_safe_and_from_which_score_on_a_text_is_flagged(serve_heads):
    config = {"guard_safe_label": "no", "guard_threshold": 0.9}
    for share, flagged in ((0.85, False), (0.95, True)):
        api = await serve_heads(lambda _, share=share: logits(1 - share, share), config=config)
        [result] = (await api.ask(PATH, input="a"))["results"]
        assert (result["flagged"], result["categories"]) == (flagged, {"no": False, "yes": flagged})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": 3},
        {"input": [1, 2]},
        {"input": ["a", {"type": "text", "text": "b"}]},
        {"input": [{"type": "text"}]},
        {"input": [{"type": "text", "text": "a", "more": 1}]},
        {"input": ["a"] * 2049},
        {"input": "a" * 65},
        {"input": "a", "messages": []},
        {"input": "a", "use_activation": False},
    ],
    ids=lambda body: repr(body)[:60],
)
async def test_what_is_not_valid_is_refused_by_its_field(serve_heads, body):
    api = await serve_heads()
    error = check_error(await api.http.post(PATH, json=body), 400, type="invalid_request_error")
    assert error["param"] in ([name for name in body if name != "input"] or ["input"])
    assert api.engine.requests == []


async def test_a_longer_text_can_be_cut(serve_heads):
    api = await serve_heads(info=LABELS | {"labels": ("safe", "harm")})
    await api.ask(PATH, input="a" * 65, truncate_prompt_tokens=-1)
    assert [len(prompt) for prompt in api.prompts] == [64]


async def test_a_model_without_labels_says_so(serve_heads):
    api = await serve_heads(info={"tasks": ("generate", "embed")})
    error = check_error(await api.http.post(PATH, json={"input": "a"}), 400, param="model", code="task_not_supported")
    assert error["message"].startswith("The model does not support Moderation API.")


async def test_a_batch_of_moderations(moderator):
    runner = moderator.app.state.batches
    running = asyncio.create_task(runner.run())
    moderator.engine.started.set()
    lines = [{"custom_id": text, "method": "POST", "url": PATH, "body": {"input": text}} for text in ("fine", "vile")]
    content = "\n".join(map(json.dumps, lines))
    uploaded = await moderator.http.post("/v1/files", files={"file": ("l.jsonl", content)}, data={"purpose": "batch"})
    asked = {"input_file_id": uploaded.json()["id"], "endpoint": PATH, "completion_window": "24h"}
    batch = (await moderator.http.post("/v1/batches", json=asked)).json()
    async with asyncio.timeout(20):
        while batch["status"] != "completed":
            await asyncio.sleep(0.005)
            batch = (await moderator.http.get(f"/v1/batches/{batch['id']}")).json()
    output = (await moderator.http.get(f"/v1/files/{batch['output_file_id']}/content")).text
    answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, output.splitlines())}
    assert {name: body["results"][0]["flagged"] for name, body in answers.items()} == {"fine": False, "vile": True}
    runner.stop()
    await running
