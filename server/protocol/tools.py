"""The fields of a chat request that say which functions the model may or must call.

`functions` and `function_call` are OpenAI's older names, and are translated. Custom tools (free text, grammars) are
refused by name: no open model writes them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from server.protocol.fields import Strict, fault

MAX_FUNCTIONS = 512
_MAX_SCHEMA_BYTES = 65_536

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class Function(Strict):
    """What a function is called, what it does, and which arguments it takes.

    Attributes:
        parameters: a JSON schema of an object; left out, there are no parameters.
        strict: its calls follow the schema, also where the model may choose not to call.
    """

    name: FunctionName
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _is_an_objects_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        if schema.get("type", "object") != "object":
            raise ValueError("it must be a JSON schema of type 'object'")
        if not isinstance(schema.get("properties", {}), dict):
            raise ValueError("its 'properties' must be an object")
        if len(json.dumps(schema, ensure_ascii=False)) > _MAX_SCHEMA_BYTES:
            raise ValueError(f"it must not have more than {_MAX_SCHEMA_BYTES} characters")
        return schema

    @property
    def schema_(self) -> dict[str, Any]:
        """The parameters' schema, which is always one of an object."""
        return {"type": "object", "properties": {}} if not self.parameters else {"type": "object", **self.parameters}

    def for_template(self) -> dict[str, Any]:
        """Return the function as templates expect it."""
        described = {} if self.description is None else {"description": self.description}
        return {"name": self.name, **described, "parameters": self.schema_}


class Tool(Strict):
    """A function that the model can ask the client to call."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _names_other_types(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(kind := data.get("type"), str) and kind != "function":
            raise ValueError(f"tools of type '{kind[:32]}' are not implemented by this server; 'function' is")
        return data


class _Named(Strict):
    name: FunctionName


class NamedChoice(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    function: _Named


class _AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=MAX_FUNCTIONS, fail_fast=True)]


class AllowedChoice(Strict):
    """A part of the tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    allowed_tools: _AllowedTools


def _choice(value: Any) -> Any:
    """Check a choice by hand: for a union, pydantic would report the faults of each kind."""
    if value in ("none", "auto", "required"):
        return value
    if isinstance(value, NamedChoice | AllowedChoice):
        return value
    kinds: dict[Any, type[NamedChoice | AllowedChoice]] = {"function": NamedChoice, "allowed_tools": AllowedChoice}
    kind = kinds.get(str(value.get("type"))) if isinstance(value, dict) else None
    if kind is None:
        raise ValueError("it must be 'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'")
    return kind.model_validate(value)


ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class ToolFields(BaseModel):
    """Which functions there are, and which of them are to be called."""

    tools: Annotated[list[Tool], Field(max_length=MAX_FUNCTIONS, fail_fast=True)] = Field([])
    tool_choice: ToolChoice | None = Field(None, description="default: auto with tools, else none")
    parallel_tool_calls: bool = Field(True, description="whether an answer may have more than one call")
    functions: Annotated[list[Function], Field(max_length=MAX_FUNCTIONS, fail_fast=True)] = Field(
        [], description="OpenAI's older name of tools"
    )
    function_call: Literal["none", "auto"] | _Named | None = Field(
        None, description="OpenAI's older name of tool_choice"
    )

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _one_kind_of_choice(cls, value: Any) -> Any:
        return None if value is None else _choice(value)

    @field_validator("function_call", mode="before")
    @classmethod
    def _one_kind_of_older_choice(cls, value: Any) -> Any:
        if value in (None, "none", "auto") or isinstance(value, _Named):
            return value
        if not isinstance(value, dict):
            raise ValueError("it must be 'none', 'auto', or an object with the 'name' of a function")
        return _Named.model_validate(value)

    @model_validator(mode="after")
    def _choices_are_there(self) -> ToolFields:
        if self.functions and self.tools:
            raise fault("functions", "'functions' is the older name of 'tools': give one of them")
        older = self.function_call is not None or bool(self.functions)
        field, listed = ("function_call", "functions") if older else ("tool_choice", "tools")
        names = [function.name for function in self.offered]
        if len(set(names)) < len(names):
            raise fault(listed, f"'{listed}' has two functions of one name")
        if not names and self.choice not in ("none", "auto"):
            raise fault(field, f"'{field}' goes with '{listed}' only")
        for name in self.chosen_names:
            if name not in names:
                raise fault(field, f"'{field}' names '{name}', which is not in '{listed}'")
        return self

    @property
    def offered(self) -> list[Function]:
        """All functions, by either name of the field."""
        return [tool.function for tool in self.tools] or self.functions

    def tool_texts(self) -> list[str]:
        """Return what the prompt has of the functions, roughly."""
        return [] if self.choice == "none" else [json.dumps(function.for_template()) for function in self.offered]

    @property
    def choice(self) -> Literal["none", "auto", "required"]:
        """Whether functions may or must be called."""
        chosen = self.tool_choice if self.function_call is None else self.function_call
        if isinstance(chosen, AllowedChoice):
            return chosen.allowed_tools.mode
        if isinstance(chosen, NamedChoice | _Named):
            return "required"
        return chosen or ("auto" if self.offered else "none")

    @property
    def chosen_names(self) -> list[str]:
        """The functions that alone may be called; empty if all may."""
        if isinstance(self.function_call, _Named):
            return [self.function_call.name]
        if isinstance(self.tool_choice, NamedChoice):
            return [self.tool_choice.function.name]
        if isinstance(self.tool_choice, AllowedChoice):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        return []
