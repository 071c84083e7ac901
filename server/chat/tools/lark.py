"""Writes grammars of tool calls as Lark text in llguidance's dialect (its docs/syntax.md)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from server.grammar.lark import schema_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Lark:
    """A grammar in the making: rules with names of its own, and expressions over them."""

    def __init__(self, special_id: Callable[[str], int | None], markers: Iterable[str] = ()) -> None:
        """`special_id` gives the id of a marker that is a special token of the model."""
        self._ids = {marker: token_id for marker in markers if (token_id := special_id(marker)) is not None}
        self._split = re.compile(f"({'|'.join(map(re.escape, self._ids))})") if self._ids else None
        self._rules: list[str] = []

    def rule(self, expression: str, options: str = "") -> str:
        """Add a rule; return its name."""
        name = f"rule{len(self._rules)}"
        self._rules.append(f"{name}{options}: {expression}")
        return name

    def text(self, text: str) -> str:
        """Return an expression for a text, which may be empty."""
        return json.dumps(text, ensure_ascii=False) if text else ""

    def marker(self, text: str) -> str:
        """Return an expression for a text with markers in it, which are special tokens in some vocabularies."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(f"<[{self._ids[part]}]>" if part in self._ids else self.text(part) for part in parts if part)

    def json(self, schema: Any) -> str:
        """Return a rule for JSON that a schema describes."""
        return self.rule(schema_expression(schema, whitespace=" "))

    def json_calls(self, schemas: dict[str, dict[str, Any]], arguments: str = "arguments") -> str:
        """Return a rule for a call of any of these functions, as one JSON object."""
        heads = {name: self.text('{"name": "%s", "%s": ' % (name, arguments)) for name in schemas}  # noqa: UP031
        calls = [f'{heads[name]} {self.json(schema)} "}}"' for name, schema in schemas.items()]
        return self.rule(" | ".join(calls))

    def text_up_to(self, marker: str) -> str:
        """Return a rule for any text up to and with the first marker."""
        if self.marker(marker) == self.text(marker):
            return self.until(marker)
        return self.rule(f"/(?s:.*)/ {self.marker(marker)}")

    def several(self, call: str, separator: str, most: int) -> str:
        """Return an expression for one call and up to `most` in all."""
        return f"{call} ({self.text(separator)} {call}){{0,{most - 1}}}" if most > 1 else call

    def until(self, end: str) -> str:
        """Return a rule for any text up to and with the first `end`."""
        return self.rule("/(?s:.*)/", f"[suffix={json.dumps(end, ensure_ascii=False)}]")

    def render(self, start: str) -> str:
        """Return the grammar, which begins at an expression."""
        return "\n".join(("%llguidance {}", f"start: {start}", *self._rules))
