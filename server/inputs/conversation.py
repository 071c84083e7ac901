"""A conversation in plain dictionaries, as server.LLM gets it: what its chat template makes of it, with its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.errors import RequestError
from server.inputs.code_parts import CodeParts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.inputs.preprocess import Prompt


def conversation_prompt(
    conversation: Sequence[Mapping[str, Any]], render: Callable[[list[dict[str, Any]]], str]
) -> Prompt:
    """Return what a template makes of messages, with the places of their parts of type code.

    Raises:
        RequestError: the template refuses these messages.
    """
    prompt = render([_with_text(message, str) for message in conversation])
    code = CodeParts()
    marked = [_with_text(message, code.marked) for message in conversation]
    return code.find(prompt, render(marked)) if code else prompt


def _with_text(message: Mapping[str, Any], code: Callable[[str], str]) -> dict[str, Any]:
    """Return a message whose content is one string; a content with parts of other types is left to the template."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    texts = [_text_of(part) for part in parts]
    if any(isinstance(part, Mapping) and part.get("type") == "code" and _text_of(part) is None for part in parts):
        raise RequestError("a part of type code lacks its 'text'", "messages")
    if not texts or None in texts:
        return dict(message)
    written = [code(text) if part["type"] == "code" else text for part, text in zip(parts, texts, strict=True)]
    return {**message, "content": "".join(written)}


def _text_of(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    keys = ("code", "text") if kind == "code" else ("text",) if kind == "text" else ()
    return next((part[key] for key in keys if isinstance(part.get(key), str)), None)
