"""Chat APIs with words of their own: their requests become chat completion requests, errors become their words again.

Owns what such APIs share; each API's fields and events are in its own package (server.responses, server.messages).
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError, create_model

from engine.errors import RequestError
from server.chat.call import ChatCall
from server.http.errors import first_problem
from server.protocol import ChatCompletionRequest, Strict
from server.protocol.neutral import AskedFields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


# Fields of chat completions that no such API has, and all take under the same names (docs/parameters.md).
EXTENSIONS = (
    *("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed"),
    *("allowed_token_ids", "bad_words", "stop_token_ids", "min_tokens", "ignore_eos", "skip_special_tokens"),
    *("structured_outputs", "modality", "cache_salt", "chat_template_kwargs", "priority", "timeout"),
)


class TranslatedRequest(AskedFields):
    """A request in one API's words.

    Attributes:
        names: a chat completion's field, as a pattern -> this API's name of it, where they differ.
        chat_type: the kind of chat completion request that it becomes.
    """

    names: ClassVar[Mapping[str, str]] = {}
    chat_type: ClassVar[type[ChatCompletionRequest]] = ChatCompletionRequest

    def passed_on(self, names: Iterable[str]) -> dict[str, Any]:
        """Return those of these fields that the request sets."""
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    def chat_request(self, fields: dict[str, Any]) -> ChatCompletionRequest:
        """Return a chat completion request of these fields, in which None stands for what was not asked for.

        Raises:
            RequestError: a value is not valid, in this API's words.
        """
        try:
            return self.chat_type.model_validate({k: v for k, v in fields.items() if v is not None})
        except ValidationError as error:
            problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
            raise self.reworded(RequestError(*first_problem(problems))) from None

    def reworded(self, error: RequestError) -> RequestError:
        """Return an error with this API's names of chat completions' fields, the longest name first."""
        text = str(error)
        for name in sorted(self.names, key=len, reverse=True):
            text = re.sub(rf"'{name}\b", f"'{self.names[name]}", text)
        error.args = (text,)
        if error.param is not None:
            error.param = self.names.get(error.param, error.param)
        return error


def chat_fields(*names: str) -> type[Strict]:
    """Return a base class with these fields of a chat completion request, each with its type, bounds and default."""
    known = ChatCompletionRequest.model_fields
    fields: dict[str, Any] = {name: (known[name].annotation, copy.copy(known[name])) for name in names}
    return create_model("ChatFields", __base__=Strict, **fields)


class TranslatedCall(ChatCall):
    """The call of a translated request: one choice, whose pieces become the API's events."""

    def __init__(self, server: Any, request: TranslatedRequest, body: ChatCompletionRequest) -> None:
        super().__init__(server, body)
        self.request = request

    def in_its_words(self, error: RequestError) -> RequestError:
        return self.request.reworded(super().in_its_words(error))

    @property
    def model_name(self) -> str:
        """The model by the name that the request has for it."""
        return self.body.model or self.server.model_name
