"""The body of POST /v1/moderations, OpenAI's, and what its answer looks like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator

from server.heads.protocol import ClassificationRequest, PoolingFields
from server.protocol import Strict
from server.protocol.fields import known_type


class TextPart(Strict):
    """A part of one input."""

    type: Literal["text"]
    text: str


def _texts(value: Any) -> list[str]:
    """Return the inputs' texts. It is checked by hand: for a union, pydantic would report the faults of each kind."""
    kinds = {*map(type, value)} if isinstance(value, list) else set()
    if isinstance(value, str):
        return [value]
    if kinds == {str}:
        texts: list[str] = value
        return texts
    if kinds == {dict}:
        return ["\n".join(TextPart.model_validate(known_type(part, ("text",))).text for part in value)]
    raise ValueError("it must be a string, a list of strings, or a list of parts of type text, and not be empty")


_Some = Field(min_length=1)
_Input = str | Annotated[list[str], _Some] | Annotated[list[TextPart], _Some]


class ModerationRequest(PoolingFields):
    """POST /v1/moderations. Parts are one input."""

    input: Annotated[list[str], PlainValidator(_texts, json_schema_input_type=_Input)]

    @property
    def param_names(self) -> dict[str | None, str]:
        return {"prompt": "input"}

    def to_classification(self) -> ClassificationRequest:
        """Return the request for the classes of the same texts."""
        same = {name: getattr(self, name) for name in self.model_fields_set - {"input"}}
        return ClassificationRequest(input=self.input, **same)


class Moderation(BaseModel):
    """What the model says of one input: each category is one of its labels."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class Moderations(BaseModel):
    """Moderations in the order of the inputs."""

    id: str
    model: str
    results: list[Moderation]
