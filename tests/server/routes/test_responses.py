"""The Responses API through OpenAI's own client: answers, streams, and what is stored of them."""

import dataclasses
import json

import openai
import pytest
import pytest_asyncio

from server.chat.chat_template import ChatTemplate
from server.config import ServerConfig
from server.http.api_keys import ApiKeys, Caller
from tests.server.conftest import check_error

RESPONSES = "/v1/responses"
GREEDY = {"temperature": 0, "max_output_tokens": 12}


@pytest_asyncio.fixture
async def client(api):
    """OpenAI's client, with the app behind it."""
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=api.http, max_retries=0)


async def events_of(api, **body):
    response = await api.http.post(RESPONSES, json={"input": "hi", "stream": True} | body)
    assert response.status_code == 200, response.text
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events):
    """The events' types, each run of one type once."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [kind for i, kind in enumerate(types) if types[i - 1 : i] != [kind]]


async def test_an_answer_is_a_message_and_its_usage(client, speak):
    speak("hello")
    response = await client.responses.create(model="tiny", input="hi", instructions="be", metadata={"a": "b"})
    assert (response.status, response.output_text, response.error) == ("completed", "hello", None)
    [message] = response.output
    assert message.id == f"msg_{response.id.removeprefix('resp_')}_0"
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (response.instructions, response.metadata, response.store) == ("be", {"a": "b"}, True)
    usage = response.usage
    assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (6, 0)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens == len("[system]be[user]hi[assistant]") + 1


async def test_it_is_the_chat_completion_of_the_same_conversation(api):
    chat = (await api.chat("hi", temperature=0, max_tokens=12))["choices"][0]["message"]["content"]
    answer = (await api.http.post(RESPONSES, json={"input": "hi", **GREEDY})).json()
    assert answer["output"][0]["content"][0]["text"] == chat


async def test_what_it_was_sampled_with_is_in_the_response(client, api, speak):
    api.app.state.server = dataclasses.replace(api.app.state.server, sampling_defaults={"temperature": 0.6})
    speak("one")
    response = await client.responses.create(model="tiny", input="hi", top_p=0.5)
    assert (response.temperature, response.top_p) == (0.6, 0.5)


async def test_at_the_limit_the_response_is_incomplete(client):
    response = await client.responses.create(model="tiny", input="hi", **GREEDY, extra_body={"ignore_eos": True})
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output[-1].status, response.completed_at) == ("incomplete", None)
    assert response.usage.output_tokens == 12


async def test_the_events_of_a_message_come_in_openais_order(api, speak):
    speak("hello")
    events = await events_of(api)
    assert kinds(events) == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(delta["delta"] for delta in deltas) == "hello"
    [item] = events[-1]["response"]["output"]
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    assert all(event["content_index"] == event["output_index"] == 0 for event in deltas)
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"


async def test_a_stream_ends_in_the_same_response_as_an_answer_in_one_piece(api, speak):
    speak("<think>\nhm\n</think>\n\nhello", "<think>\nhm\n</think>\n\nhello")
    streamed = (await events_of(api))[-1]["response"]
    whole = (await api.http.post(RESPONSES, json={"input": "hi"})).json()

    def without_names(response):
        text = json.dumps(response).replace(response["id"].removeprefix("resp_"), "KEY")
        times = {"created_at": 0, "completed_at": 0}
        answer = json.loads(text) | times
        answer["usage"]["input_tokens_details"] = {}  # how much was cached depends on what came before
        return answer

    assert without_names(streamed) == without_names(whole)


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_reasoning_is_an_item_of_its_own_as_it_is_or_as_summary(api, speak, summary):
    speak("<think>\nhm\n</think>\n\nhello")
    events = await events_of(api, reasoning={"summary": summary})
    reasoning, message = events[-1]["response"]["output"]
    field, kind = ("content", "reasoning_text") if summary is None else ("summary", "summary_text")
    assert reasoning[field] == [{"type": kind, "text": "hm"}]
    assert message["content"][0]["text"] == "hello"
    part = "content_part" if summary is None else "reasoning_summary_part"
    text = "reasoning_text" if summary is None else "reasoning_summary_text"
    assert kinds(events)[2:8] == [
        *("output_item.added", f"{part}.added", f"{text}.delta", f"{text}.done", f"{part}.done", "output_item.done"),
    ]
    usage = events[-1]["response"]["usage"]
    assert len("<think>\nhm\n") < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"] - 5


async def test_openais_accumulator_reads_the_stream(client, speak):
    speak("<think>hm</think>hello")
    async with client.responses.stream(model="tiny", input="hi") as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert snapshots[-1] == final.output_text == "hello"


async def test_logprobs_are_those_of_the_answers_tokens(api, monkeypatch):
    """The prompt opens the reasoning, which never ends, or there is none: then all tokens are the answer's."""
    body = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "ignore_eos": True, **GREEDY}
    answer = (await api.http.post(RESPONSES, json={"input": "hi"} | body)).json()
    [part] = answer["output"][0]["content"]
    assert len(part["logprobs"]) == 12
    assert all(len(report["top_logprobs"]) == 2 for report in part["logprobs"])
    assert b"".join(bytes(report["bytes"]) for report in part["logprobs"]).decode(errors="replace") == part["text"]
    events = await events_of(api, **body)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [report for delta in deltas for report in delta["logprobs"]] == part["logprobs"]
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate("<think>\n", {}))
    answer = (await api.http.post(RESPONSES, json={"input": "hi"} | body)).json()
    assert [item["type"] for item in answer["output"]] == ["reasoning"]


async def test_a_conversation_goes_on_from_a_stored_response(client, speak, prompts):
    speak("<think>hm</think>one", "two", "three")
    first = await client.responses.create(model="tiny", input="a", instructions="not carried over")
    second = await client.responses.create(model="tiny", input="b", previous_response_id=first.id)
    await client.responses.create(model="tiny", input="c", previous_response_id=second.id)
    assert prompts[-1] == "<|bos|>[user]a[assistant]one[user]b[assistant]two[user]c[assistant]"
    listed = [item async for item in client.responses.input_items.list(second.id, order="asc")]
    assert [item.type for item in listed] == ["message", "reasoning", "message", "message"]
    assert len({item.id for item in listed}) == 4
    page = await client.responses.input_items.list(second.id, limit=1, after=listed[3].id)
    assert ([item.id for item in page.data], page.has_more) == ([listed[2].id], True)


async def test_items_of_stored_responses_can_be_referred_to(client, speak, prompts):
    speak("one", "two")
    first = await client.responses.create(model="tiny", input="a")
    items = [{"role": "user", "content": "a"}, {"type": "item_reference", "id": first.output[0].id}, {"id": "msg_x"}]
    with pytest.raises(openai.BadRequestError, match="no stored item with the id 'msg_x'"):
        await client.responses.create(model="tiny", input=items)
    await client.responses.create(model="tiny", input=[*items[:2], {"role": "user", "content": "b"}])
    assert prompts[-1] == "<|bos|>[user]a[assistant]one[user]b[assistant]"


async def test_a_response_is_found_until_it_is_deleted(api, client, speak):
    speak("one", "two")
    response = await client.responses.create(model="tiny", input="a")
    assert await client.responses.retrieve(response.id) == response
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.cancel(response.id)
    await client.responses.delete(response.id)
    for method, suffix in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        gone = await api.http.request(method, f"{RESPONSES}/{response.id}{suffix}")
        check_error(gone, 404, type="not_found_error", param="response_id")
    again = await api.http.post(RESPONSES, json={"input": "b", "previous_response_id": response.id})
    check_error(again, 400, param="previous_response_id", code="previous_response_not_found")


async def test_what_is_not_to_be_stored_is_not(client, speak):
    speak("one")
    response = await client.responses.create(model="tiny", input="a", store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_tenant_finds_only_its_own(serve, speak):
    api = await serve(keys=ApiKeys([Caller.of_key("sk-a", 1.0, "a"), Caller.of_key("sk-b", 1.0, "b")]))
    speak("one")
    own, other = ({"Authorization": f"Bearer sk-{key}"} for key in "ab")
    response = (await api.http.post(RESPONSES, json={"input": "a"}, headers=own)).json()
    url = f"{RESPONSES}/{response['id']}"
    assert (await api.http.get(url, headers=own)).status_code == 200
    check_error(await api.http.get(url, headers=other), 404)
    body = {"input": [{"type": "item_reference", "id": response["output"][0]["id"]}]}
    check_error(await api.http.post(RESPONSES, json=body, headers=other), 400, param="input")


@pytest.mark.parametrize("place", ["off", "file"])
async def test_a_server_that_cannot_store_answers_and_says_so(serve, speak, tmp_path, caplog, place):
    (tmp_path / "file").write_text("not a folder")
    data_dir = "off" if place == "off" else str(tmp_path / "file" / "state")
    api = await serve(config=ServerConfig(data_dir=data_dir))
    speak("one")
    answer = await api.http.post(RESPONSES, json={"input": "a"})
    assert (answer.status_code, answer.json()["status"], answer.json()["store"]) == (200, "completed", False)
    assert ("a response was not stored" in caplog.text) == (place == "file")  # off is as it was asked for
    later = await api.http.post(RESPONSES, json={"input": "a", "previous_response_id": answer.json()["id"]})
    check_error(later, 503)


async def test_a_failure_ends_the_stream_with_an_error_and_a_failed_response(api, say, ids_of):
    say([*ids_of("one"), None])
    *_, error, failed = await events_of(api)
    assert (error["type"], error["code"]) == ("error", None)
    assert error.keys() == {"type", "code", "message", "param", "sequence_number"}
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": error["message"]}
    check_error(await api.http.get(f"{RESPONSES}/{failed['response']['id']}"), 404)


async def test_limits_are_refused_in_the_apis_own_words(api):
    async def refused(**body):
        return await api.http.post(RESPONSES, json={"input": "hi"} | body)

    check_error(await refused(input="a" * 600), 400, param="input", code="context_length_exceeded")
    check_error(await refused(max_output_tokens=600), 400, param="max_output_tokens", code="context_length_exceeded")
    check_error(await refused(model="other"), 404, param="model", code="model_not_found")
    assert "'temperature'" in check_error(await refused(temperature=3), 400, param="temperature")["message"]


async def test_truncation_leaves_out_the_oldest_turns(api, prompts, speak):
    speak("yes")
    turns = [{"role": role, "content": letter * 100} for letter in "abcde" for role in ("user", "assistant")]
    body = {"input": [*turns, {"role": "user", "content": "z"}], "instructions": "be", "max_output_tokens": 40}
    check_error(await api.http.post(RESPONSES, json=body), 400, param="input", code="context_length_exceeded")
    answer = await api.http.post(RESPONSES, json=body | {"truncation": "auto"})
    assert answer.status_code == 200, answer.text
    assert prompts[-1].startswith("<|bos|>[system]be[user]d")  # with c, there is no room for 40 tokens
    endless = {"input": "a" * 600, "truncation": "auto"}
    check_error(await api.http.post(RESPONSES, json=endless), 400, param="input", code="context_length_exceeded")


TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Z"}}\n</tool_call>'


@pytest.fixture
def short_prompts(api, monkeypatch):
    """Prompts that fit the tiny context: without the system message, which tells of the tools."""
    template = "{% for m in messages[1:] %}[{{ m.role }}]{{ m.content or '' }}{{ m.tool_calls | length }}{% endfor %}"
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate(template, {}))


async def test_a_call_is_an_item_and_its_result_goes_on_with_it(client, speak, short_prompts, prompts):
    speak("Wait." + CALL, "sunny")
    async with client.responses.stream(model="tiny", input="hi", tools=[TOOL]) as stream:
        types = [event.type async for event in stream]
        first = await stream.get_final_response()
    assert "response.function_call_arguments.delta" in types
    assert types.count("response.output_item.done") == 2
    message, call = first.output
    assert (message.content[0].text, call.name, json.loads(call.arguments)) == ("Wait.", "get_weather", {"city": "Z"})
    assert call.id.startswith("fc_")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "25 C"}
    second = await client.responses.create(
        model="tiny", input=[result], previous_response_id=first.id, tools=[TOOL], tool_choice="auto"
    )
    assert second.output_text == "sunny"
    assert prompts[-1].endswith("[user]hi0[assistant]Wait.1[tool]25 C0")


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
async def test_a_call_that_is_required_comes(api, short_prompts, choice):
    body = {"input": "hi", "tools": [TOOL], "tool_choice": choice, "max_output_tokens": 60, "temperature": 0}
    answer = (await api.http.post(RESPONSES, json=body)).json()
    assert answer["tool_choice"] == choice
    assert (answer["output"][0]["type"], answer["output"][0]["name"]) == ("function_call", "get_weather")


async def test_faults_of_tools_are_told_in_the_apis_own_words(api):
    bad = {"type": "function", "name": "f", "parameters": {"type": "string"}}
    error = check_error(await api.http.post(RESPONSES, json={"input": "hi", "tools": [bad]}), 400, param="tools")
    assert "'tools[0].parameters'" in error["message"]


async def test_the_tokens_of_a_prompt_are_counted_as_its_answer_counts_them(client, speak):
    speak("one", "two")
    first = await client.responses.create(model="tiny", input="a", instructions="be")
    more = {"model": "tiny", "input": "b", "previous_response_id": first.id}
    count = await client.responses.input_tokens.count(**more)
    assert count.input_tokens == (await client.responses.create(**more)).usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="'input"):
        await client.responses.input_tokens.count(model="tiny", input=[{"type": "image"}])
