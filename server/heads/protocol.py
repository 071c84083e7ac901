"""The bodies of POST /v1/embeddings and /v1/classify: OpenAI's fields, and vLLM's beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from server.admission import estimate_tokens
from server.chat.translated import TranslatedRequest
from server.protocol import Message, fault
from server.protocol.fields import TokenId, are_token_ids
from server.protocol.neutral import Identifier
from server.protocol.prompts import PromptFields
from server.protocol.schema import NULL, as_taken, split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.inputs import ModelInput
    from server.protocol import ChatCompletionRequest

_OF_CHATS = ("messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_Input = str | Annotated[list[str], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]
_KINDS: list[dict[str, Any]] = [{"input": None, **dict.fromkeys(_OF_CHATS, NULL)}, {"messages": None, "input": NULL}]


def _input(value: Any) -> Any:
    """Check an input by hand: for a union of lists, pydantic would report every fault once for each kind of list."""
    if value == []:
        raise ValueError("it must not be empty")
    inputs = value if isinstance(value, list) and not are_token_ids(value) else [value]
    if all(isinstance(item, str) for item in inputs) or all(map(are_token_ids, inputs)):
        return value
    raise ValueError("it must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


class PoolingFields(PromptFields):
    """What every request for embeddings, classes or scores can say.

    Attributes:
        neutral_values: fields of vLLM's that ask for what is done anyway; other values are refused.
    """

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {"padding": ("do_not_pad",)}
    model_config = ConfigDict(json_schema_extra=lambda schema, cls: as_taken(schema, cls.neutral_values))

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


class InputRequest(PoolingFields, TranslatedRequest):
    """Texts, or a conversation as POST /v1/chat/completions takes it."""

    model_config = ConfigDict(json_schema_extra=lambda schema, cls: _either(schema, cls.neutral_values))

    input: Annotated[
        str | list[str] | list[int] | list[list[int]] | None,
        PlainValidator(_input, json_schema_input_type=_Input | None),
    ] = None
    messages: list[Message] | None = Field(
        None, min_length=1, max_length=4096, fail_fast=True, description="a conversation in the place of `input`"
    )
    add_special_tokens: bool | None = Field(None, description="default: true for texts, false for a conversation")
    add_generation_prompt: bool | None = Field(None, description="end with the beginning of an answer")
    continue_final_message: bool | None = Field(None, description="leave the last message open")
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=64, description="for the chat template")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> InputRequest:
        if (self.input is None) == (self.messages is None):
            raise fault("input", "a request needs either 'input' or 'messages'")
        if self.input is not None and (foreign := next((n for n in _OF_CHATS if getattr(self, n) is not None), None)):
            raise fault(foreign, f"'{foreign}' goes with 'messages' only")
        return self

    @property
    def param_names(self) -> dict[str | None, str]:
        return {"prompt": "messages" if self.input is None else "input"}

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """One entry for each text; none of a conversation."""
        if self.input is None:
            return []
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input

    def to_chat(self) -> ChatCompletionRequest:
        """Return the chat completion request whose prompt is the conversation."""
        fields = self.passed_on(("model", "messages", "continue_final_message", "chat_template_kwargs"))
        return self.chat_request({**fields, "add_generation_prompt": bool(self.add_generation_prompt)})

    def estimate_tokens(self) -> list[int]:
        """Return roughly how many tokens each text has, before any work on the texts."""
        if self.input is None:
            return self.to_chat().estimate_tokens()
        return list(map(estimate_tokens, self.inputs))


def _either(schema: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    as_taken(schema, neutral)
    split(schema, _KINDS)


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
