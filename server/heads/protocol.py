"""The bodies of POST /v1/embeddings and /v1/classify: OpenAI's fields, and vLLM's beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, model_validator

from server.chat.text_or_chat import TextOrChatRequest
from server.protocol import fault
from server.protocol.fields import TokenId, as_prompts
from server.protocol.neutral import Identifier
from server.protocol.prompts import PromptFields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.inputs import ModelInput
    from server.protocol import ChatCompletionRequest

_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_Input = str | Annotated[list[str], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]


class PoolingFields(PromptFields):
    """What every request for embeddings, classes or scores can say."""

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {"padding": ("do_not_pad",)}

    user: Identifier | None = Field(None, description="no effect: nobody is watched here")
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        lt=1 << 31,
        description="keep so many tokens of each text, special ones included; -1: as many as the context holds",
        json_schema_extra={"not": {"const": 0}},
    )
    truncation_side: Literal["left", "right"] = Field("right", description="the end at which texts are cut")

    def cut(self, text: ModelInput, num_tokens: int) -> ModelInput:
        """Return what is left of a text that is cut to so many tokens."""
        first = 0 if self.truncation_side == "right" else max(0, len(text) - num_tokens)
        return text[first : first + num_tokens]


class InputRequest(PoolingFields, TextOrChatRequest):
    """Texts, or a conversation."""

    text_field: ClassVar[str] = "input"
    input: Annotated[
        list[str] | list[list[int]] | None, PlainValidator(as_prompts, json_schema_input_type=_Input | None)
    ] = None

    @property
    def param_names(self) -> dict[str | None, str]:
        return {"prompt": "messages" if self.input is None else "input"}

    def to_chat(self) -> ChatCompletionRequest:
        chat = super().to_chat()
        chat.add_generation_prompt = bool(self.add_generation_prompt)
        return chat


class EmbeddingRequest(InputRequest):
    """POST /v1/embeddings."""

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **PoolingFields.neutral_values,
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
    }

    encoding_format: Literal["float", "base64"] = Field(
        "float", description="numbers, or the base64 of their bytes as little-endian fp32"
    )
    dimensions: int | None = Field(
        None, ge=1, lt=1 << 31, description="keep so many numbers of each embedding, and normalise these"
    )
    pooling: Literal["last", "mean"] | None = Field(
        None, description="the last token's hidden state, or all tokens' mean; default: --pooling"
    )
    normalize: bool | None = Field(None, description="scale embeddings to length 1; default: as the checkpoint says")
    use_activation: bool | None = Field(None, description="the same, by vLLM's name")

    @model_validator(mode="after")
    def _one_name(self) -> EmbeddingRequest:
        if self.normalize is not None and self.use_activation not in (None, self.normalize):
            raise fault("use_activation", "'use_activation' and 'normalize' are two names of one thing, and differ")
        return self

    @property
    def normalizes(self) -> bool | None:
        """Whether embeddings are scaled to length 1, if the request says so."""
        return self.use_activation if self.normalize is None else self.normalize


class ClassificationRequest(InputRequest):
    """POST /v1/classify."""

    use_activation: bool = Field(True, description="probabilities; false is logits")
