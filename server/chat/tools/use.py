"""What one request's tools mean here: for the prompt, for the grammar, and for reading the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import RequestError
from server.chat.tools.format import Calls, ToolFormat, ToolParser
from server.chat.tools.formats import FORMATS, format_of
from server.chat.tools.lark import Lark
from server.grammar.closing import closed
from server.protocol.tools import NamedChoice

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.chat.chat_template import ChatTemplate
    from server.protocol.tools import Function, ToolFields

_MAX_CALLS = 16  # that a grammar lets a model make in one answer


class ToolUse:
    """The functions of a request, and the format in which this model calls them.

    Attributes:
        choice: whether functions may or must be called; "none" if there are none.
        functions: those that may be called.
        format: how the model writes calls.
    """

    def __init__(self, body: ToolFields, template: ChatTemplate, parser: str) -> None:
        """`parser` is --tool-parser.

        Raises:
            RequestError: this server takes no tools.
        """
        self.choice = body.choice if body.offered else "none"
        if self.choice != "none" and parser == "none":
            raise RequestError("This server takes no tools: it was started with --tool-parser none.", "tools")
        chosen = body.chosen_names
        self.functions = [f for f in body.offered if self.choice != "none" and (not chosen or f.name in chosen)]
        is_named = isinstance(body.tool_choice, NamedChoice)  # which asks for one call of it
        self._parallel = body.parallel_tool_calls and not body.functions and not is_named
        shown = format_of(template.source) if parser in ("auto", "none") else FORMATS[parser]
        self.format: ToolFormat = shown or FORMATS["hermes"]
        self._is_native = shown is not None and "tools" in template.variables

    @property
    def for_template(self) -> list[dict[str, Any]] | None:
        """What the template's variable `tools` is; None if it tells the model of no tools."""
        if not self.functions or not self._is_native:
            return None
        return [{"type": "function", "function": function.for_template()} for function in self.functions]

    @property
    def instructions(self) -> str | None:
        """What a system message must tell the model, as its template does not."""
        if not self.functions or self._is_native:
            return None
        return self.format.instructions([function.for_template() for function in self.functions])

    @property
    def is_one_call_enough(self) -> bool:
        """Whether the first call ends the answer."""
        return bool(self.functions) and not self._parallel

    def parser(self) -> ToolParser | None:
        """Return a reader of one choice's calls; None if there can be none."""
        if not self.functions:
            return None
        names = (function.name for function in self.functions)
        return ToolParser(self.format, Calls(names, parallel=self._parallel, id_length=self.format.id_length))

    @property
    def guides_free_answers(self) -> bool:
        """Whether calls follow their schemas also where the model may choose not to call."""
        is_strict = any(function.strict for function in self.functions)
        return self.choice == "auto" and is_strict and not self.format.only_at_start

    def calls_grammar(self, special_id: Callable[[str], int | None]) -> str:
        """Return the grammar of an answer that is calls alone, as Lark text; `special_id` as in Lark.

        Raises:
            RequestError: with the reason against a function's parameters.
        """
        lark = Lark(special_id, self.format.markers)
        opener = lark.marker(self.format.opener)
        block = lark.rule(f"{opener} {self._block(lark, {f.name: _schema(f) for f in self.functions})}")
        return lark.render(lark.several(block, self.format.separator, self._num_blocks))

    def free_grammar(self, special_id: Callable[[str], int | None]) -> str:
        """Return the grammar of text with calls in it, those of strict functions by their schemas. Raises likewise."""
        lark = Lark(special_id, self.format.markers)
        schemas = {f.name: _schema(f) if f.strict else {"type": "object"} for f in self.functions}
        opener = lark.text_up_to(self.format.opener)
        block = lark.rule(f"{opener} {self._block(lark, schemas)}")
        return lark.render(f"{block}{{0,{self._num_blocks}}} {lark.rule('/(?s:.*)/')}")

    @property
    def _num_blocks(self) -> int:
        return _MAX_CALLS if self._parallel and self.format.one_call_a_block else 1

    def _block(self, lark: Lark, schemas: dict[str, dict[str, Any]]) -> str:
        return self.format.block(lark, schemas, _MAX_CALLS if self._parallel else 1)


def _schema(function: Function) -> dict[str, Any]:
    """Return a function's schema, by which it takes no arguments but those that it lists, unless it says otherwise."""
    schema: dict[str, Any] = closed(function.schema_)
    return schema
