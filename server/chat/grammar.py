"""The grammar of a chat's answer: calls, content of a form, or either; and reasoning before it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from server.chat.reasoning import MARKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.chat.tools.use import ToolUse

_OPEN, _CLOSE = MARKERS
Reasons = Literal["inside", "maybe", "no"]  # the output begins in reasoning; the model may begin it itself; it is off


def of_answer(
    tools: ToolUse, form: str | None, reasoning: Reasons, special_id: Callable[[str], int | None]
) -> str | None:
    """Return what the answer must match, for llguidance; None if it is free.

    Args:
        tools: the request's.
        form: what content must match, as Lark text; an answer of calls has no content.
        reasoning: whether there is any before the answer.
        special_id: the id of a marker that is a special token.

    Raises:
        RequestError: with the reason against a function's parameters.
    """
    named: dict[str, str] = {}
    if form is not None and tools.choice != "required":
        named["content"] = form
    if tools.choice == "required" or (named and tools.functions):
        named["calls"] = tools.calls_grammar(special_id)
    elif tools.guides_free_answers:
        named["text"] = tools.free_grammar(special_id)
    if not named:
        return None
    answer = " | ".join(f"@{name}" for name in named)
    if reasoning == "inside":
        return _grammars(["start: thinking answer", f"answer: {answer}", *_thinking(special_id)], named)
    if reasoning == "maybe":
        rules = ["start: (opened thinking)? answer", f"answer: {answer}", *_opened(special_id), *_thinking(special_id)]
        return _grammars(rules, named)
    return next(iter(named.values())) if len(named) == 1 else _grammars([f"start: {answer}"], named)


def _opened(special_id: Callable[[str], int | None]) -> list[str]:
    token_id = special_id(_OPEN)
    return [f"opened: {json.dumps(_OPEN) if token_id is None else f'<[{token_id}]>'}"]


def _thinking(special_id: Callable[[str], int | None]) -> list[str]:
    token_id = special_id(_CLOSE)
    if token_id is not None:
        return [rf"thinking: /(?s:.*)/ <[{token_id}]> /[ \n]{{0,4}}/"]
    return [r"thinking: thought /[ \n]{0,4}/", f"thought[suffix={json.dumps(_CLOSE)}]: /(?s:.*)/"]


def _grammars(rules: list[str], named: dict[str, str]) -> str:
    """Return a grammar of these rules, which refer to grammars by their names."""
    first = "\n".join(('%llguidance {"no_forcing": true}', *rules))
    others = [{"name": name, "lark_grammar": text} for name, text in named.items()]
    return json.dumps({"grammars": [{"lark_grammar": first}, *others]}, ensure_ascii=False)
