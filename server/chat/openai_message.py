"""OpenAI's JSON of an answer's message, whole and in a stream's deltas.

Reasoning has two names, which clients differ in: `reasoning_content` (DeepSeek's API, SGLang) and `reasoning` (vLLM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.chat.pieces import Content, Reasoning, ToolCallArguments, ToolCallStart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.chat.pieces import ChatMessage, Piece

Json = dict[str, Any]
_REASONING_FIELDS = ("reasoning_content", "reasoning")


def delta_json(pieces: Iterable[Piece], *, is_first: bool, older: bool) -> Json:
    """Return a chunk's delta. `older`: a call is a `function_call`."""
    delta: Json = {"role": "assistant", "content": ""} if is_first else {}
    for piece in pieces:
        match piece:
            case Reasoning(text):
                for field in _REASONING_FIELDS:
                    delta[field] = delta.get(field, "") + text
            case Content(text):
                delta["content"] = delta.get("content", "") + text
            case ToolCallStart(index, call_id, name):
                function = {"name": name, "arguments": ""}
                _add_call(delta, {"index": index, "id": call_id, "type": "function", "function": function}, older=older)
            case ToolCallArguments(index, text):
                _add_call(delta, {"index": index, "function": {"arguments": text}}, older=older)
    if is_first and not delta["content"] and ("tool_calls" in delta or "function_call" in delta):
        delta["content"] = None
    return delta


def _add_call(delta: Json, call: Json, *, older: bool) -> None:
    """Add a piece of a call; pieces of one call are one entry, as clients merge entries of different chunks only."""
    if older:
        before = delta.setdefault("function_call", {})
        before |= call["function"] | {"arguments": before.get("arguments", "") + call["function"]["arguments"]}
        return
    calls = delta.setdefault("tool_calls", [])
    if calls and calls[-1]["index"] == call["index"]:
        calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    else:
        calls.append(call)


def message_json(message: ChatMessage, *, older: bool) -> Json:
    """Return an answer's message. `older`: a call is a `function_call`."""
    written: Json = {"role": "assistant", "content": message.content, "refusal": None}
    if message.reasoning:
        written |= dict.fromkeys(_REASONING_FIELDS, message.reasoning)
    if message.tool_calls:
        written["content"] = message.content or None
        functions = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        if older:
            written["function_call"] = functions[0]
        else:
            written["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": function}
                for call, function in zip(message.tool_calls, functions, strict=True)
            ]
    return written
