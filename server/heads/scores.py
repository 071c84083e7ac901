"""The bodies of POST /v1/score and /v1/rerank: vLLM's, of which the latter is also Jina's and Cohere's."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from server.heads.protocol import PoolingFields
from server.protocol import Strict, fault
from server.protocol.schema import NULL, as_taken, split

# vLLM's names of the two sides
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
_NAMES = tuple(dict.fromkeys(name for names in _SIDES for name in names))


class TextObject(Strict):
    """A text as an object, as Cohere's and Jina's clients may send it."""

    text: str


def _text(value: Any) -> str:
    text = value.get("text") if isinstance(value, dict) and value.keys() == {"text"} else value
    if isinstance(text, str):
        return text
    raise ValueError('it must be a string, or an object {"text": "..."}')


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


_Text = str | TextObject  # for the schema, as is the next
_TextOrSome = _Text | Annotated[list[_Text], Field(min_length=1)]
One = Annotated[str, PlainValidator(_text, json_schema_input_type=_Text)]
Some = Annotated[list[str], PlainValidator(_texts, json_schema_input_type=_TextOrSome)]


class ScoringRequest(PoolingFields):
    """Texts of two sides: one query for all documents, or a query for each."""

    use_activation: bool = Field(True, description="of a model with a head: probabilities; false is logits")
    max_tokens_per_query: int = Field(0, ge=0, lt=1 << 31, description="cut queries to so many tokens; 0: not at all")
    max_tokens_per_doc: int = Field(0, ge=0, lt=1 << 31, description="the same for documents")

    @property
    @abstractmethod
    def sides(self) -> tuple[list[str], list[str]]:
        """Queries and documents."""

    @property
    @abstractmethod
    def side_names(self) -> tuple[str, str]:
        """The fields that have them."""

    @property
    def param_names(self) -> dict[str | None, str]:
        return {"prompt": self.side_names[1]}

    @model_validator(mode="after")
    def _fit_together(self) -> ScoringRequest:
        (queries, documents), names = self.sides, self.side_names
        if not queries:
            raise fault(names[0], "At least one text element must be given")
        if not documents:
            raise fault(names[1], "At least one text_pair element must be given")
        if len(queries) not in (1, len(documents)):
            raise fault(names[1], "Input lengths must be either 1:1, 1:N or N:N")
        return self


def _by_names(schema: dict[str, Any]) -> None:
    as_taken(schema, PoolingFields.neutral_values)
    split(schema, [{name: None if name in names else NULL for name in _NAMES} for names in _SIDES])


class ScoreRequest(ScoringRequest):
    """POST /v1/score."""

    model_config = ConfigDict(json_schema_extra=_by_names)

    text_1: Some | None = None
    text_2: Some | None = None
    queries: Some | None = Field(None, description="another name of text_1")
    documents: Some | None = Field(None, description="another name of text_2")
    items: Some | None = Field(None, description="another name of text_2, beside `queries`")
    data_1: Some | None = Field(None, description="another name of text_1")
    data_2: Some | None = Field(None, description="another name of text_2")

    @property
    def side_names(self) -> tuple[str, str]:
        given = {name for name in _NAMES if getattr(self, name) is not None}
        names = next((names for names in _SIDES if given == {*names}), None)
        if names is None:
            message = "a request needs 'text_1' and 'text_2', or 'queries' and 'documents', and no other texts"
            raise fault(next((name for name in _NAMES if name in given), "text_1"), message)
        return names

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        first, second = self.side_names
        return getattr(self, first), getattr(self, second)


class RerankRequest(ScoringRequest):
    """POST /v1/rerank."""

    query: One
    documents: Some
    top_n: int = Field(0, ge=0, lt=1 << 31, description="results at most; 0: all")
    return_documents: bool = Field(True, description="give the texts again")

    @property
    def side_names(self) -> tuple[str, str]:
        return "query", "documents"

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        return [self.query], self.documents
