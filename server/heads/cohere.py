"""The body of POST /v2/embed, Cohere's, as a request for embeddings; and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from engine.errors import RequestError
from server.answers import AT_TIMES
from server.chat.translated import TranslatedRequest
from server.heads.answers import embedding_of
from server.heads.protocol import EmbeddingRequest
from server.protocol import fault

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping

EmbeddingType = Literal["float", "base64", "binary", "ubinary"]
_KINDS = ("search_document", "search_query", "classification", "clustering")  # of texts, by Cohere's names


class CohereEmbeddingRequest(TranslatedRequest):
    """POST /v2/embed."""

    names: ClassVar[Mapping[str, str]] = {
        "input": "texts",
        "dimensions": "output_dimension",
        "truncate_prompt_tokens": "max_tokens",
    }

    model: Annotated[str, Field(max_length=1024)] | None = Field(None, description="default: the served model")
    texts: list[str] = Field(min_length=1, fail_fast=True)
    input_type: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="which of the checkpoint's prompts goes before each text; nothing if it has none"
    )
    embedding_types: list[EmbeddingType] | None = Field(
        None, min_length=1, max_length=4, description="default: float; binary and ubinary have a bit for each number"
    )
    output_dimension: int | None = Field(None, ge=1, lt=1 << 31, description="keep so many numbers of each embedding")
    truncate: Literal["NONE", "START", "END"] = Field("END", description="where longer texts are cut, or refused")
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="cut texts to so many; default: the context")
    priority: int = Field(0, ge=-(1 << 31), lt=1 << 31, description="for --policy priority: smaller is sooner")

    @model_validator(mode="after")
    def _cuts(self) -> CohereEmbeddingRequest:
        if self.truncate == "NONE" and self.max_tokens is not None:
            raise fault("max_tokens", "'max_tokens' cuts texts, which 'truncate': 'NONE' forbids")
        return self

    @property
    def types(self) -> list[EmbeddingType]:
        """The forms of embeddings that are asked for, each once."""
        return list(dict.fromkeys(self.embedding_types or ["float"]))

    def to_embedding(self, prompts: Mapping[str, str]) -> EmbeddingRequest:
        """Return the request for embeddings that is meant, of a checkpoint with these prompts.

        Raises:
            RequestError: the checkpoint has no such prompt.
        """
        begin = self._prompt(prompts)
        fields = {
            "model": self.model,
            "input": [begin + text for text in self.texts],
            "dimensions": self.output_dimension,
            "truncate_prompt_tokens": None if self.truncate == "NONE" else self.max_tokens or -1,
            "truncation_side": "left" if self.truncate == "START" else "right",
            "priority": self.priority,
        }
        return EmbeddingRequest.model_validate(fields)

    def _prompt(self, prompts: Mapping[str, str]) -> str:
        if self.input_type is None:
            return ""
        shorter = self.input_type.removeprefix("search_")  # as sentence-transformers calls it
        for name in (self.input_type, shorter, *(["passage"] if shorter == "document" else [])):
            if name in prompts:
                return prompts[name]
        valid = prompts or _KINDS
        if self.input_type not in valid:
            listed = ", ".join(f"'{name}'" for name in valid)
            raise RequestError(f"'input_type' is '{self.input_type}'; valid are {listed}", "input_type")
        return ""


class EmbeddingsByType(BaseModel):
    """Embeddings in the order of their texts, in each form that was asked for."""

    floats: list[list[float]] | None = Field(None, alias="float")
    base64: list[str] = AT_TIMES
    binary: list[list[int]] = AT_TIMES
    ubinary: list[list[int]] = AT_TIMES


class BilledUnits(BaseModel):
    """What Cohere would bill: the tokens of all texts."""

    input_tokens: int


class ApiVersion(BaseModel):
    """Of Cohere's API."""

    version: Literal["2"]


class CohereMeta(BaseModel):
    """What the answer says of itself."""

    api_version: ApiVersion
    billed_units: BilledUnits


class CohereEmbeddings(BaseModel):
    """The answer of POST /v2/embed."""

    id: str
    texts: list[str]
    meta: CohereMeta
    embeddings: EmbeddingsByType


def written(vector: array[float], form: EmbeddingType) -> Any:
    """Return an embedding in one of Cohere's forms; of bits, the first number's is a byte's highest."""
    if form in ("float", "base64"):
        return embedding_of(vector, as_base64=form == "base64")
    bits = "".join("1" if value >= 0 else "0" for value in vector)
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return list(packed) if form == "ubinary" else [byte - 128 for byte in packed]
