"""The request fields that ask for structured output, OpenAI's and vLLM's, and the grammar that they ask for.

A request has at most one of them. Grammars are made and checked once it is admitted, in a thread (server.pipeline).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from engine.errors import RequestError
from server.grammar import lark
from server.grammar.closing import closed
from server.protocol.fields import Strict, fault
from server.protocol.schema import NULL, split

JsonSchema = dict[str, Any] | bool
Choices = Annotated[list[str], Field(min_length=1)]
Backend = Literal["auto", "guidance", "llguidance", "xgrammar", "outlines", "lm-format-enforcer"]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema with a name.

    Attributes:
        name, description: for readers; nothing depends on them.
        strict: the schema is always enforced, whatever this says.
    """

    model_config = ConfigDict(protected_namespaces=())

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


_ABSENT: dict[str, Any] = {
    **dict.fromkeys(("json", "regex", "choice", "grammar"), NULL),
    "json_object": {"enum": [None, False]},
}
_IN_JSON = ("json", "json_object")
_OF_JSON: dict[str, Any] = {  # the options of these, as the schema has them beside other constraints
    "whitespace_pattern": NULL,
    "disable_any_whitespace": {"const": False},
    "disable_additional_properties": {"const": False},
}
_BY_CONSTRAINT = [  # for the schema alone
    {**_ABSENT, **({} if name in _IN_JSON else _OF_JSON), name: None} for name in _ABSENT
]


class StructuredOutputs(Strict):
    """vLLM's structured_outputs: one constraint, and how its JSON may look.

    Attributes:
        disable_fallback: of vLLM's backends; there is one here, so nothing depends on it.
    """

    model_config = ConfigDict(json_schema_extra=lambda schema: split(schema, _BY_CONSTRAINT))

    json_: JsonSchema | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_fallback: bool = False
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_one_constraint(self) -> StructuredOutputs:
        if len(self.constraints) != 1:
            raise ValueError("it must have just one of 'json', 'regex', 'choice', 'grammar' and 'json_object'")
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise ValueError("'disable_any_whitespace' and 'whitespace_pattern' do not go together")
        if self.constraints[0] not in _IN_JSON and (idle := [name for name in _OF_JSON if getattr(self, name)]):
            raise ValueError(f"'{idle[0]}' goes with 'json' and 'json_object' only")
        return self

    @property
    def constraints(self) -> list[str]:
        """The names of the constraints that are set."""
        given = {
            "json": self.json_ is not None,
            "regex": self.regex is not None,
            "choice": self.choice is not None,
            "grammar": self.grammar is not None,
            "json_object": bool(self.json_object),
        }
        return [name for name, is_given in given.items() if is_given]

    def to_lark(self) -> str:
        """Return the grammar. Raises RequestError with the reason against it."""
        if self.regex is not None:
            return lark.grammar_of(lark.regex_expression(self.regex))
        if self.choice is not None:
            return lark.choice(self.choice)
        if self.grammar is not None:
            return lark.user_grammar(self.grammar)
        schema = lark.ANY_OBJECT if self.json_ is None else _schema(self.json_)
        whitespace = None if self.disable_any_whitespace else self.whitespace_pattern or lark.WHITESPACE
        expression = lark.schema_expression(schema, whitespace=whitespace, closed=self.disable_additional_properties)
        return lark.grammar_of(expression)


class StructuredOutputFields(Strict):
    """What a request for text can say of its form."""

    response_format: ResponseFormat | None = Field(None, description="text, json_object or json_schema")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's: json, regex, choice or grammar")
    guided_json: JsonSchema | str | None = Field(None, description="vLLM's older name of structured_outputs.json")
    guided_regex: str | None = Field(None, description="likewise, as the next two")
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: Annotated[str, Field(min_length=1)] | None = Field(None, description="with guided_json")
    guided_decoding_backend: Backend | None = Field(None, description="there is one here: nothing depends on it")

    @model_validator(mode="after")
    def _asks_for_one_form(self) -> StructuredOutputFields:
        fields = self._form_fields()
        if len(fields) > 1:
            raise fault(fields[1], f"'{fields[0]}' and '{fields[1]}' do not go together")
        if self.guided_whitespace_pattern is not None and self.guided_json is None:
            raise fault("guided_whitespace_pattern", "'guided_whitespace_pattern' goes with 'guided_json' only")
        return self

    @property
    def form_field(self) -> str | None:
        """The field that asks for a form; None if the text is free."""
        return next(iter(self._form_fields()), None)

    def form(self) -> str | None:
        """Return the grammar that the fields ask for, as Lark text; None if the text is free.

        Raises:
            RequestError: with the reason against it.
        """
        match self.response_format:
            case JsonObjectFormat():
                return lark.grammar_of(lark.schema_expression(lark.ANY_OBJECT))
            case JsonSchemaFormat(json_schema=named):
                schema = lark.ANY_OBJECT if named.schema_ is None else closed(named.schema_)
                return lark.grammar_of(lark.schema_expression(schema))
        outputs = self.structured_outputs or self._guided()
        return None if outputs is None else outputs.to_lark()

    def _guided(self) -> StructuredOutputs | None:
        """The older fields in the words of the newer one."""
        if not self._form_fields():
            return None
        given: dict[str, Any] = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
            "whitespace_pattern": self.guided_whitespace_pattern,
        }
        return StructuredOutputs(**given)

    def _form_fields(self) -> list[str]:
        names = (
            "response_format",
            "structured_outputs",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
        )
        given = [name for name in names if getattr(self, name) is not None]
        return given[1:] if isinstance(self.response_format, TextFormat) else given


def _schema(value: JsonSchema | str) -> JsonSchema:
    """A schema that may be given as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema is not valid JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise RequestError("the schema must be a JSON object")
    return schema
