"""/tokenize, /detokenize and /tokenizer_info: vLLM's shapes, and what lm-evaluation-harness reads of them."""

import pytest

from tests.server.conftest import check_error

HI = [{"role": "user", "content": "hi"}]


async def tokenize(api, **body):
    response = await api.http.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_text_is_tokenised_as_a_completions_prompt_is(api, ids_of):
    answer = await tokenize(api, prompt="hé")
    assert answer == {"count": 3, "max_model_len": 512, "tokens": ids_of("hé"), "token_strs": None}
    completion = await api.choice("hé", max_tokens=1, return_token_ids=True)
    assert answer["tokens"] == completion["prompt_token_ids"]


async def test_tokens_have_names(api):
    names = (await tokenize(api, prompt="a é", return_token_strs=True))["token_strs"]
    assert names == ["a", "Ġ", "Ã", "©"]


async def test_special_tokens_are_added_only_where_they_are_wanted(api, monkeypatch):
    monkeypatch.setattr(api.tokenizer, "_add_bos", True)
    bos = api.tokenizer.bos_id
    assert (await tokenize(api, prompt="a"))["tokens"][0] == bos
    assert (await tokenize(api, prompt="a", add_special_tokens=False))["count"] == 1
    assert (await tokenize(api, messages=HI))["tokens"].count(bos) == 1  # which the template writes


async def test_a_conversation_is_tokenised_as_a_chats_prompt_is(api, reference_tokenizer):
    tokens = (await tokenize(api, messages=HI))["tokens"]
    chat = await api.chat("hi", max_tokens=1, return_token_ids=True)
    assert tokens == chat["prompt_token_ids"]
    without = (await tokenize(api, messages=HI, add_generation_prompt=False))["tokens"]
    assert reference_tokenizer.decode(without, skip_special_tokens=False) == "<|bos|>[user]hi"


async def test_texts_may_be_longer_than_the_context(api):
    assert (await tokenize(api, prompt="a" * 20_000))["count"] == 20_000
    assert (await tokenize(api, messages=[{"role": "user", "content": "a" * 20_000}]))["count"] == 20_018
    assert api.app.state.server.admission.num_prompts == 0


async def test_detokenising_gives_the_text_back(api):
    for text in ("", "hé\n", "<|bos|>x"):
        tokens = (await tokenize(api, prompt=text))["tokens"]
        answer = await api.http.post("/detokenize", json={"tokens": tokens})
        assert answer.json() == {"prompt": text}


async def test_the_tokenizer_tells_of_itself(api):
    info = (await api.http.get("/tokenizer_info")).json()
    assert (info["bos_token"], info["eos_token"], info["vocab_size"]) == ("<|bos|>", "<|eos|>", 258)
    assert "assistant" in info["chat_template"]
    assert (info["model_max_length"], info["tokenizer_class"]) == (512, "PreTrainedTokenizerFast")
    assert (await tokenize(api, prompt=info["eos_token"], add_special_tokens=False))["count"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "mm_processor_kwargs": {}}, 400, "mm_processor_kwargs"),
        ("/tokenize", {"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": [258]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": [1], "text": "a"}, 400, "text"),
    ],
)
async def test_what_is_not_valid_is_refused_by_its_field(api, path, body, status, param):
    check_error(await api.http.post(path, json=body), status, param=param)


async def test_a_full_queue_refuses_this_work_too(api):
    admission = api.app.state.server.admission
    with admission.admit(admission.max_prompts * 2, 1):
        response = await api.http.post("/tokenize", json={"prompt": "a"})
        check_error(response, 429, type="rate_limit_error")
        assert int(response.headers["retry-after"]) >= 1
