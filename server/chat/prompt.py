"""The conversation as its chat template gets it: messages, tools and variables, in the forms that templates differ in.

What a template does not know is told in words: tools in a system message, calls and results as text.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from engine.errors import RequestError
from server.chat.switches import template_variables
from server.chat.tools.hermes import call_as_text, result_as_text
from server.large import apart

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.chat.chat_template import ChatTemplate
    from server.chat.tools.use import ToolUse
    from server.protocol import ChatCompletionRequest

_Message = dict[str, Any]


async def render(
    template: ChatTemplate, body: ChatCompletionRequest, tools: ToolUse, code: Callable[[str], str] = str
) -> str:
    """Return the prompt's text, with what `code` returns in place of parts that are code.

    Raises:
        RequestError: the template refuses these messages.
    """
    has_calls = any(message.tool_calls or message.function_call for message in body.messages)
    form = await _form_of(template) if has_calls and "tool_calls" in template.source else None
    messages = await apart(_written, template, body, tools, code, form)
    options = {
        "tools": tools.for_template,
        "documents": None,
        **template_variables(body, template),
        "add_generation_prompt": body.adds_generation_prompt,
        "continue_final_message": body.continue_final_message,
    }
    if (instructions := await apart(lambda: tools.instructions)) is None:
        return await _text(template, messages, **options)
    try:
        return await _text(template, _with_system(messages, instructions), **options)
    except RequestError:
        if messages[0]["role"] != "user":
            raise
    first, *rest = messages  # a template that knows no system messages
    first = {**first, "content": f"{instructions}\n\n{first['content']}"}
    return await _text(template, [first, *rest], **options)


def _written(
    template: ChatTemplate, body: ChatCompletionRequest, tools: ToolUse, code: Callable[[str], str], form: _Form | None
) -> list[_Message]:
    """Return the messages as the template gets them."""
    messages = [_in_newer_words(message.for_template(code)) for message in body.messages]
    if tools.format.id_length is not None:
        messages = [_with_short_ids(message, tools.format.id_length) for message in messages]
    if "tool_calls" not in template.source:
        return _as_text(messages)
    return messages if form is None else [_formed(message, form) for message in messages]


async def _text(template: ChatTemplate, messages: list[_Message], **options: Any) -> str:
    return await template.render_apart(messages, **options)


def _in_newer_words(message: _Message) -> _Message:
    """Return a message of OpenAI's older role `function` as a tool's."""
    return {**message, "role": "tool"} if message["role"] == "function" else message


def _with_short_ids(message: _Message, length: int) -> _Message:
    """Return a message with the ends of calls' ids, for templates that refuse longer ones: clients may have others'."""
    if "tool_calls" in message:
        return {**message, "tool_calls": [{**c, "id": c.get("id", "")[-length:]} for c in message["tool_calls"]]}
    if "tool_call_id" in message:
        return {**message, "tool_call_id": message["tool_call_id"][-length:]}
    return message


@dataclass(frozen=True)
class _Form:
    """How a template wants an assistant's message of calls.

    Attributes:
        parsed: arguments are an object, else JSON text.
        empty: the content where there is none.
    """

    parsed: bool
    empty: str | None


_forms: WeakKeyDictionary[ChatTemplate, _Form] = WeakKeyDictionary()


async def _form_of(template: ChatTemplate) -> _Form:
    """Return a template's form, which is found out once."""
    if template not in _forms:
        _forms[template] = await _tried(template)
    return _forms[template]


async def _tried(template: ChatTemplate) -> _Form:
    """Try the forms: the first in which the arguments come out as JSON, and no None as a word, is the template's."""
    forms = [_Form(parsed, empty) for parsed in (True, False) for empty in (None, "")]
    for form in forms:
        function = {"name": "f", "arguments": '{"probe": "x"}'}
        messages: list[_Message] = [
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "abcdefghi", "type": "function", "function": function}],
            },
            {"role": "tool", "content": "r", "tool_call_id": "abcdefghi", "name": "f"},
        ]
        try:
            text = await _text(template, [_formed(message, form) for message in messages], add_generation_prompt=False)
        except RequestError:
            continue
        if "None" not in text and ('"probe"' in text or ("'probe'" not in text and '\\"probe' not in text)):
            return form
    return _Form(parsed=True, empty="")


def _formed(message: _Message, form: _Form) -> _Message:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _arguments(call["function"]["arguments"], form)}}
        for call in message["tool_calls"]
    ]
    return {**message, "content": message["content"] or form.empty, "tool_calls": calls}


def _arguments(text: str, form: _Form) -> Any:
    """Return arguments in a template's form; text that is no JSON object, which models can write, stays text."""
    if not form.parsed:
        return text or "{}"
    try:
        parsed = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text


def _as_text(messages: list[_Message]) -> list[_Message]:
    """Return messages for a template that knows neither calls nor results."""
    written: list[_Message] = []
    for is_result, group in itertools.groupby(messages, key=lambda message: message["role"] == "tool"):
        if is_result:  # one message, as users' and assistants' take turns
            results = (result_as_text(message["content"]) for message in group)
            written.append({"role": "user", "content": "\n".join(results)})
        else:
            written += map(_calls_as_text, group)
    return written


def _calls_as_text(message: _Message) -> _Message:
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [call_as_text(function["name"], function["arguments"]) for function in functions]
    others = {name: value for name, value in message.items() if name != "tool_calls"}
    return others | {"content": "\n".join(filter(None, (message["content"], *calls)))}


def _with_system(messages: list[_Message], text: str) -> list[_Message]:
    """Return messages with more text in the first system message, or in a new one."""
    first, *rest = messages
    if first["role"] in ("system", "developer"):
        return [{**first, "content": "\n\n".join(filter(None, (first["content"], text)))}, *rest]
    return [{"role": "system", "content": text}, *messages]
