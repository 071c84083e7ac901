"""The Messages API through Anthropic's own client: answers, streams, errors and counts."""

import json

import anthropic
import httpx2
import pytest
import pytest_asyncio

from server.chat.chat_template import ChatTemplate
from server.http.api_keys import ApiKeys, Caller

MESSAGES = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]


@pytest_asyncio.fixture
async def client(api):
    """Anthropic's client, with the app behind it."""
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app), base_url="http://test")
    async with anthropic.AsyncAnthropic(base_url="http://test", api_key="none", http_client=http, max_retries=0) as own:
        yield own


async def post(api, **body):
    return await api.http.post(MESSAGES, json={"model": "tiny", "max_tokens": 40, "messages": HI} | body)


def check_error(response, status, kind):
    """Anthropic's error shape; the message."""
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind), body
    assert body.keys() == {"type", "error", "request_id"}
    assert body["error"].keys() == {"type", "message"}
    assert body["request_id"] == response.headers["request-id"]
    return body["error"]["message"]


async def events_of(api, **body):
    response = await post(api, stream=True, **body)
    assert response.status_code == 200, response.text
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    pairs = [frame.split("\n") for frame in frames]
    events = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name for name, _ in pairs] == [f"event: {event['type']}" for event in events]
    return events


async def test_an_answer_is_a_message(client, speak):
    speak("hello")
    message = await client.messages.create(model="tiny", max_tokens=40, system="be", messages=HI)
    assert [(block.type, block.text) for block in message.content] == [("text", "hello")]
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert message.id.startswith("msg_")
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len("[system]be[user]hi[assistant]") + 1
    assert usage.output_tokens == 6
    assert message._request_id is not None


async def test_it_is_the_chat_completion_of_the_same_conversation(api):
    chat = (await api.chat("hi", temperature=0, max_tokens=12))["choices"][0]["message"]["content"]
    answer = (await post(api, temperature=0, max_tokens=12)).json()
    assert answer["content"] == [{"type": "text", "text": chat}]


async def test_the_prefix_cache_is_counted_apart(client):
    long = [{"role": "user", "content": "a" * 100}]
    for _ in range(2):
        message = await client.messages.create(model="tiny", max_tokens=1, messages=long)
    assert message.usage.cache_read_input_tokens >= 64
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == 118


async def test_the_events_come_in_anthropics_order(api, speak):
    speak("<think>\nhm\n</think>\n\nyes")
    events = await events_of(api)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[2] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    }
    second = kinds.index("content_block_start", 3)
    assert kinds[second - 1] == "content_block_stop"
    assert events[second - 2]["delta"]["type"] == "signature_delta"
    assert events[second]["content_block"] == {"type": "text", "text": ""}
    assert {event["index"] for event in events[second:-2]} == {1}
    assert "".join(event["delta"]["text"] for event in events[second + 1 : -3]) == "yes"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    usage = events[-2]["usage"]
    assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"] - 3


async def test_anthropics_accumulator_makes_the_same_of_a_stream_as_an_answer_in_one_piece(client, speak):
    speak("<think>hm</think>yes", "<think>hm</think>yes")
    async with client.messages.stream(model="tiny", max_tokens=40, messages=HI) as stream:
        assert "".join([text async for text in stream.text_stream]) == "yes"
        streamed = await stream.get_final_message()
    whole = await client.messages.create(model="tiny", max_tokens=40, messages=HI)
    assert [block.model_dump(exclude_none=True) for block in streamed.content] == [
        block.model_dump(exclude_none=True) for block in whole.content
    ]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


@pytest.mark.parametrize("stream", [True, False])
async def test_why_an_answer_ends_is_said_in_anthropics_words(api, say, ids_of, stream):
    async def ending(**body):
        if stream:
            return (await events_of(api, **body))[-2]["delta"]
        answer = (await post(api, **body)).json()
        return {name: answer[name] for name in ("stop_reason", "stop_sequence")}

    say(ids_of("one STOP" + "a" * 600))  # the step after a stop string may have begun
    assert await ending(stop_sequences=["END", "STOP"]) == {"stop_reason": "stop_sequence", "stop_sequence": "STOP"}
    assert await ending(max_tokens=3) == {"stop_reason": "max_tokens", "stop_sequence": None}
    full = await ending(max_tokens=100_000)  # clients send one number for all models
    assert full == {"stop_reason": "model_context_window_exceeded", "stop_sequence": None}


async def test_a_failure_is_an_error_event_and_the_last(api, say, ids_of):
    say([*ids_of("one"), None])
    *_, error = await events_of(api)
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")


async def test_errors_have_anthropics_shape_and_name_its_fields(api):
    assert "'stop'" in check_error(await post(api, stop="x"), 400, "invalid_request_error")  # it is stop_sequences here
    assert "'max_tokens'" in check_error(await post(api, max_tokens=0), 400, "invalid_request_error")
    assert "'stop_sequences[0]'" in check_error(await post(api, stop_sequences=[""]), 400, "invalid_request_error")
    check_error(await post(api, model="other"), 404, "not_found_error")
    check_error(await api.http.get(MESSAGES), 405, "invalid_request_error")
    check_error(await api.http.post(MESSAGES, content=b"{"), 400, "invalid_request_error")
    long = [{"role": "user", "content": "a" * 600}]
    assert "512" in check_error(await post(api, messages=long), 400, "invalid_request_error")


async def test_without_a_key_the_answer_has_anthropics_shape(serve):
    api = await serve(keys=ApiKeys([Caller.of_key("sk-a", 1.0, "a")]))
    check_error(await post(api), 401, "authentication_error")
    headers = {"x-api-key": "sk-a", "anthropic-version": "2023-06-01"}
    answer = await api.http.post(MESSAGES, json={"max_tokens": 1, "messages": HI}, headers=headers)
    assert answer.status_code == 200


async def test_the_tokens_of_a_prompt_are_counted_as_its_answer_counts_them(client, api):
    system = [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}]
    count = await client.messages.count_tokens(model="tiny", system=system, messages=HI)
    assert count.input_tokens == len("[system]be[user]hi[assistant]") + 1
    long = await client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "a" * 20_000}])
    assert long.input_tokens == 20_018
    assert api.app.state.server.admission.num_prompts == 0
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.count_tokens(model="other", messages=HI)


TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Z"}}\n</tool_call>'


async def test_a_tool_is_used_and_its_result_goes_on_with_it(api, client, speak, prompts, monkeypatch):
    template = "{% for m in messages[1:] %}[{{ m.role }}]{{ m.content or '' }}{{ m.tool_calls | length }}{% endfor %}"
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate(template, {}))
    speak("Wait." + CALL, "sunny")
    async with client.messages.stream(model="tiny", max_tokens=100, messages=HI, tools=[TOOL]) as stream:
        message = await stream.get_final_message()
    text, use = message.content
    assert (text.text, use.name, use.input, message.stop_reason) == ("Wait.", "get_weather", {"city": "Z"}, "tool_use")
    assert message.stop_sequence is None
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "25 C"}
    messages = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    answer = await client.messages.create(model="tiny", max_tokens=40, messages=messages, tools=[TOOL])
    assert answer.content[0].text == "sunny"
    assert prompts[-1].endswith("[user]hi0[assistant]Wait.1[tool]25 C0")


async def test_faults_of_tools_are_told_in_anthropics_words(api):
    bad = {**TOOL, "input_schema": {"type": "string"}}
    message = check_error(await post(api, tools=[bad]), 400, "invalid_request_error")
    assert "'tools[0].input_schema'" in message


async def test_anthropics_tool_runner_goes_on_without_threads(api, client, speak, monkeypatch):
    """It asks for a thread first, and sends whole conversations once it is told that there is none."""
    template = "{% for m in messages[1:] %}[{{ m.role }}]{{ m.content or '' }}{{ m.tool_calls | length }}{% endfor %}"
    monkeypatch.setattr(api.tokenizer, "chat_template", ChatTemplate(template, {}))
    speak(CALL, "sunny")

    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """The weather."""
        return f"{city}: 25 C"

    runner = client.beta.messages.tool_runner(model="tiny", max_tokens=100, messages=HI, tools=[get_weather])
    answers = [message.stop_reason async for message in runner]
    assert answers == ["tool_use", "end_turn"]


async def test_a_last_message_of_the_assistant_is_the_answers_beginning(client, speak, prompts):
    speak("lo")
    messages = [*HI, {"role": "assistant", "content": "hel"}]
    message = await client.messages.create(model="tiny", max_tokens=40, messages=messages)
    assert message.content[0].text == "lo"
    assert prompts[-1] == "<|bos|>[user]hi[assistant]hel"
