"""What every stream of completions and chats keeps to, and that its chunks join to the answer in one piece."""

import pytest

from server.chat.chat_template import ChatTemplate
from tests.server.conftest import CHAT, COMPLETIONS

SEEDED = {"seed": 3, "max_tokens": 24, "return_token_ids": True}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": [1, 22]}}}},
}
CASES = [
    (COMPLETIONS, {"prompt": ["one", "é"], "n": 2, "logprobs": 2, "echo": True}),
    (COMPLETIONS, {"prompt": "one", "stop": ["a", "e"]}),
    (CHAT, {"n": 3, "logprobs": True, "top_logprobs": 1}),
    (CHAT, {"n": 2, "temperature": 0, "stop": ["a"]}),
    (CHAT, {"n": 2, "tools": [TOOL], "tool_choice": "required", "max_tokens": 90}),
    (CHAT, {"n": 2, "tools": [TOOL], "parallel_tool_calls": False, "logprobs": True}),
    (CHAT, {"n": 2, "chat_template_kwargs": {"opening": "<think>\n"}, "logprobs": True}),
]


@pytest.fixture(autouse=True)
def _short_prompts(api, monkeypatch):
    """The context is short, and a system message that tells of tools is long."""
    template = ChatTemplate("{# tool_calls #}{{ messages[-1].content }}{{ opening }}", {})
    monkeypatch.setattr(api.tokenizer, "chat_template", template)


@pytest.mark.parametrize(("path", "body"), CASES, ids=lambda value: str(value)[:60])
async def test_chunks_join_to_the_whole_answer(api, path, body):
    whole = await api.ask(path, **SEEDED | body)
    *chunks, last = await api.stream(path, stream_options={"include_usage": True}, **SEEDED | body)
    assert last["choices"] == []
    assert last["usage"] | {"prompt_tokens_details": {}} == whole["usage"] | {
        "prompt_tokens_details": {}
    }  # what was cached
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, last]}) == 1
    for expected in whole["choices"]:
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == expected["index"]]
        reasons = [choice["finish_reason"] for choice in choices]
        assert reasons == [None] * (len(reasons) - 1) + [expected["finish_reason"]]
        assert [i for choice in choices for i in choice["token_ids"]] == expected["token_ids"]
        assert _joined_logprobs(choices) == expected["logprobs"]
        if path == COMPLETIONS:
            assert "".join(choice["text"] for choice in choices) == expected["text"]
        else:
            assert ["role" in choice["delta"] for choice in choices] == [True] + [False] * (len(choices) - 1)
            assert _joined(choices) == _plain(expected["message"])


def _joined_logprobs(choices):
    """All lists of the choices' logprobs, each joined; None where there are none."""
    reports = [choice["logprobs"] for choice in choices]
    if reports[0] is None:
        return None
    return {name: reports[0][name] and [x for r in reports for x in r[name]] for name in reports[0]}


def _joined(choices):
    """A chat choice's text, reasoning and calls, from its deltas."""
    deltas, calls = [choice["delta"] for choice in choices], {}
    for entry in (entry for delta in deltas for entry in delta.get("tool_calls", [])):
        assert ("id" in entry) == ("name" in entry["function"]) == (entry["index"] not in calls)
        call = calls.setdefault(entry["index"], {"name": "", "arguments": ""})
        for name, text in entry["function"].items():
            call[name] += text
    text, reasoning = ("".join(delta.get(name) or "" for delta in deltas) for name in ("content", "reasoning_content"))
    return text, reasoning, [calls[index] for index in sorted(calls)]


def _plain(message):
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return message["content"] or "", message.get("reasoning_content", ""), calls
