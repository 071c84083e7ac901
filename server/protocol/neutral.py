"""Fields that ask for nothing of the tokens, and fields that are refused with a reason.

A neutral field is checked as OpenAI does and then has no effect; docs/parameters.md says why for each. A value that
asks for something which this server cannot do is refused: nothing is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from server.protocol.fields import Strict, whole
from server.protocol.messages import Content
from server.protocol.schema import as_taken

if TYPE_CHECKING:
    from collections.abc import Container

Identifier = Annotated[str, Field(max_length=1024)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]

# Fields of OpenAI's reference, vLLM and SGLang that are refused, and why.
REFUSED = {
    "audio": "this server has models of text only",
    "moderation": "POST /v1/moderations judges texts, and --guard has every request judged",
    "web_search_options": "this server does not search the web",
    "prompt_embeds": "prompts are text or token ids",
    "mm_processor_kwargs": "this server has models of text only",
    "chat_template": "a template from a request is code from a stranger; --chat-template sets one",
    "documents": "give them in chat_template_kwargs, if the template reads them",
    "logits_processors": "they are code; logit_bias, bad_words and allowed_token_ids are there",
    "return_hidden_states": "hidden states are not reported",
    "lora_path": "this server has no adapters",
    "kv_transfer_params": "KV caches are not moved between servers",
}

# Values of vLLM's and SGLang's fields that are what this server does anyway; other values are refused.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none",),
    "tools": ([],),
    "parallel_tool_calls": (True, False),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "length_penalty": (1, 1.0),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "include_reasoning": (True,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "no_stop_trim": (False,),
    "return_hidden_states": (False,),
}


class AskedFields(Strict):
    """A request, without what asks for nothing.

    Attributes:
        neutral_values: values of fields that the model does not list, which ask for nothing.
    """

    neutral_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    model_config = ConfigDict(json_schema_extra=lambda schema, cls: as_taken(schema, cls.neutral_values))

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        return _asked_for(data, cls.model_fields, cls.neutral_values)


class Prediction(Strict):
    """Text that the answer may repeat: a hint for speed, which changes no answer."""

    type: Literal["content"]
    content: Content


class PromptCacheOptions(Strict):
    """How prompts are cached: `implicit` is what the prefix cache does."""

    mode: Literal["implicit"] = "implicit"


class NeutralFields(Strict):
    """Accepted, checked, and without effect on the tokens."""

    user: Identifier | None = Field(None, description="no effect: OpenAI's older name of safety_identifier")
    safety_identifier: Identifier | None = Field(None, description="no effect: nobody is watched here")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        {}, max_length=16, description="no effect: labels of stored answers, and none are stored"
    )
    store: bool = Field(
        False, description="answers are not stored; true is refused", json_schema_extra={"const": False}
    )
    service_tier: Literal["auto", "default"] = Field("auto", description="there is one tier; others are refused")
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = Field(
        None, description="no effect: the longest time that prefixes may be kept, and memory ends them sooner"
    )
    prompt_cache_options: PromptCacheOptions | None = Field(
        None, description="no effect: mode implicit is what is done"
    )
    modalities: list[str] = Field(
        ["text"], description="text is what there is; audio is refused", json_schema_extra={"const": ["text"]}
    )
    prediction: Prediction | None = Field(None, description="no effect: a hint for speed, which changes no answer")

    @field_validator("store")
    @classmethod
    def _stores_nothing(cls, value: bool) -> bool:
        if value:
            raise ValueError("answers of this route are not stored; false is valid")
        return value

    @field_validator("modalities")
    @classmethod
    def _text_alone(cls, value: list[str]) -> list[str]:
        if value != ["text"]:
            raise ValueError("answers are text; ['text'] is valid")
        return value


def _asked_for(data: Any, known: Container[str], neutral: Mapping[str, tuple[Any, ...]]) -> Any:
    """Return a request's fields, whole numbers as such, without those that ask for nothing and unknown ones but one.

    Args:
        data: the request; what is no object stays as it is.
        known: the fields that its model lists. Null stands for their defaults: clients send it unasked.
        neutral: values of other fields that ask for nothing.
    """
    if not isinstance(data, dict):
        return data
    asked: dict[str, Any] = {}
    has_unknown = False
    for name, value in data.items():
        if value is None or (name not in known and _is_one_of(value, neutral.get(name, ()))):
            continue
        if name not in known:
            if has_unknown:  # pydantic would report each, and only the first is answered with
                continue
            has_unknown = True
        asked[name] = whole(value)
    return asked


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of these: 1 is not True."""
    return any(type(value) is type(one) and value == one for one in values)
