"""Grammars as llguidance's Lark text: of a JSON schema, a regular expression, choices, or a grammar of the user's.

The functions are pure. Those called `..._expression` give what can stand in a rule, so that others build grammars of
them: f'start: "<call>" {schema_expression(schema)} "</call>"'. Lark's own words are in llguidance's docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.grammar_check import GBNF
from server.grammar.json_schema import Schema, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

ANY_OBJECT: Schema = {"type": "object"}
# A rule's attributes in Lark, up to one that llguidance takes and does not act on here.
_IDLE_ATTRIBUTE = re.compile(
    r"""^[ \t]*[?!]?\w+(?:::\w*)?[ \t]*\[(?:"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])*/|[^\]"/\n])*?"""
    r"\b(temperature|capture|stop_capture)\b",
    re.MULTILINE,
)
# Where JSON may have whitespace: a space or two, or a new line and its indentation. Small models fill an unbounded one.
WHITESPACE = r"[ \t]{1,2}|\r?\n[ \t]{0,32}"


def schema_expression(schema: Schema, *, whitespace: str | None = WHITESPACE, closed: bool = False) -> str:
    """Return an expression for the JSON texts that are valid by a schema; properties come in the schema's order.

    Args:
        schema: draft 2020-12, 2019-09, 7, 6 or 4.
        whitespace: a regular expression of what may stand between JSON's tokens; None allows nothing there.
        closed: objects that say nothing of further properties have none.

    Raises:
        RequestError: the schema needs what cannot be enforced.
    """
    prepared = prepare(schema, closed=closed)
    if prepared is False:
        raise RequestError("the schema allows nothing")
    spaces = {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
    guided = {"x-guidance": spaces, **({} if prepared is True else prepared)}
    try:
        return "%json " + json.dumps(guided, ensure_ascii=False)
    except (RecursionError, ValueError):
        raise RequestError("the schema is nested too deeply") from None


def text_expression(text: str) -> str:
    """Return an expression for just this text."""
    return json.dumps(text)


def regex_expression(pattern: str) -> str:
    """Return an expression for the texts that a regular expression matches as a whole; `^` and `$` around it may stay.

    The dialect is that of Rust's regex crate, without look-around.
    """
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1:
        pattern = pattern[:-1]
    # A slash would end the expression, and so would a line's end.
    escaped = re.sub(r"\\.|/", lambda found: found[0] if found[0] != "/" else r"\/", pattern, flags=re.DOTALL)
    escaped = escaped.replace("\\\n", "\n").replace("\n", r"\n").replace("\r", r"\r")
    return f"/{escaped or '(?:)'}/"


def grammar_of(expression: str) -> str:
    """Return the grammar of one expression."""
    return f"start: {expression}\n"


def choice(texts: Sequence[str]) -> str:
    """Return the grammar of one of several texts."""
    return "start: CHOICE\nCHOICE: " + " | ".join(map(text_expression, texts)) + "\n"


def user_grammar(text: str) -> str:
    """Return a grammar that is written in Lark (with a rule `start`) or in GBNF (with a rule `root`).

    GBNF is marked as such. What tries the grammar translates it, as that may take for ever (engine.grammar_check).

    Raises:
        RequestError: a rule has an attribute that would have no effect.
    """
    if not re.search(r"(?m)^[ \t]*(?:[?!]?start[ \t]*:(?!:)|%llguidance\b)", text):
        return GBNF + text
    if (found := _IDLE_ATTRIBUTE.search(text)) is not None:
        raise RequestError(f"a rule's attribute '{found[1]}' has no effect in this server")
    return text
