"""The texts of a request before they are tokens: how many and how long, then their ids, cut and joined as asked for.

Tokenising is done in threads, some texts at a time: thousands of texts hold up no stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.errors import RequestError
from server.admission import estimate_tokens
from server.chat.tokens import rendered
from server.heads.protocol import InputRequest, PoolingFields
from server.heads.scores import ScoringRequest
from server.heads.values import joined, paired
from server.inputs import MarkedText, ModelInput, Prompt, check_modality, preprocess
from server.large import in_thread
from server.text.long_texts import num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from server.state import ServerState

_AT_A_TIME = 1 << 15  # bytes that one turn of a thread tokenises
Body = TypeVar("Body", bound=PoolingFields)


class Texts(ABC, Generic[Body]):
    """What values are computed of.

    Attributes:
        sizes: roughly how many tokens each prompt has.
    """

    def __init__(self, server: ServerState, body: Body) -> None:
        self.server, self.body = server, body
        self.sizes = self._estimated()

    @property
    def num_entries(self) -> int:
        """How many the request's longest list has."""
        return len(self.sizes)

    @abstractmethod
    def _estimated(self) -> list[int]:
        """Return the sizes."""

    @abstractmethod
    async def encode(self) -> list[ModelInput]:
        """Return the prompts as the model reads them; called once the request is admitted.

        Raises:
            RequestError: a text is too long, or not valid Unicode.
        """

    def check(self) -> None:
        """Refuse what shows before any work is done.

        Raises:
            RequestError: there are too many texts or tokens, or the model does not know their modality.
        """
        check_modality(self.body.modality, self.server.client.require_info().modalities)
        config, field = self.server.config, self.body.param_names["prompt"]
        if self.num_entries > config.max_inputs:
            message = f"'{field}' has {self.num_entries} entries; at most {config.max_inputs} are taken (--max-inputs)."
            raise RequestError(message, field)
        if (num_tokens := sum(self.sizes)) > config.max_queued_tokens:
            bound = f"{config.max_queued_tokens} may wait (--max-queued-tokens)"
            raise RequestError(f"'{field}' has about {num_tokens} tokens, and {bound}: send it in parts.", field)

    async def _encoded(self, texts: Sequence[str | MarkedText], limit: int = 0) -> list[ModelInput]:
        """Return texts without special tokens, cut to a limit; 0 is none."""
        if not limit and self.body.truncate_prompt_tokens is None:
            for text in texts:
                await self.server.check_text(text)
        else:
            texts = await self._shortened(texts, limit)
        encoded: list[ModelInput] = []
        for some, size in _parts(texts):
            encoded += await self.server.texts.run(size, self._all_encoded, some)
        return [self.body.cut(item, limit) for item in encoded] if limit else encoded

    async def _shortened(self, texts: Sequence[str | MarkedText], limit: int) -> list[str | MarkedText]:
        """Return what is wanted of texts that will be cut, and some more."""
        kept = [tokens for tokens in (limit, self._room(0)) if tokens]
        is_beginning, shortened = self.body.truncation_side == "right", list(texts)
        for i, text in enumerate(texts):
            if isinstance(text, str):
                shortened[i] = await self.server.texts.end_of(text, min(kept), is_beginning=is_beginning)
            else:
                await self.server.check_text(text, any_length=True)
        return shortened

    def _all_encoded(self, prompts: Sequence[Prompt]) -> list[ModelInput]:
        return list(map(self._preprocess, prompts))

    def _preprocess(self, prompt: Prompt) -> ModelInput:
        known = self.server.client.require_info().modalities
        return preprocess(self.server.tokenizer, prompt, known, modality=self.body.modality, add_special_tokens=False)

    def _room(self, num_special_tokens: int) -> int | None:
        """Return how many tokens a prompt may have beside the special ones; None if it is not cut."""
        keep = self.body.truncate_prompt_tokens
        if keep is None:
            return None
        room = (self.server.client.require_info().max_seq_len if keep == -1 else keep) - num_special_tokens
        if room < 1:
            message = f"'truncate_prompt_tokens' must be more than the {num_special_tokens} special tokens"
            raise RequestError(f"{message} of a prompt.", "truncate_prompt_tokens")
        return room

    def _all_framed(self, texts: Sequence[ModelInput]) -> list[ModelInput]:
        return list(map(self._framed, texts))

    def _framed(self, text: ModelInput) -> ModelInput:
        """Return one text with the special tokens around it, cut as the request asks."""
        room = self._room(self.server.tokenizer.num_special_tokens(1))
        return self._joined(text if room is None else self.body.cut(text, room))

    def _joined(self, *texts: ModelInput) -> ModelInput:
        """Return a text, or a pair, with the special tokens that stand around and between."""
        return joined(self.server.tokenizer, self._preprocess, *texts)


class Inputs(Texts[InputRequest]):
    """The `input` of a request, or its conversation."""

    def __init__(self, server: ServerState, body: InputRequest) -> None:
        self._chat = body.to_chat() if body.input is None else None
        super().__init__(server, body)

    def _estimated(self) -> list[int]:
        return list(map(estimate_tokens, self.body.input or ())) if self._chat is None else self._chat.estimate_tokens()

    def check(self) -> None:
        super().check()
        vocab_size = self.server.client.require_info().vocab_size
        for prompt in self.body.input or ():
            if not isinstance(prompt, list):
                break  # no other is a list either
            if max(prompt, default=0) >= vocab_size:
                message = f"Token ids must lie from 0 to {vocab_size - 1}. Those of another model's tokenizer are"
                hint = "another text here: have the client send texts (LangChain: check_embedding_ctx_length=False)."
                raise RequestError(f"{message} {hint}", "prompt")

    async def encode(self) -> list[ModelInput]:
        body, adds = self.body, self.body.add_special_tokens
        prompts: Sequence[Prompt] = body.input or ()
        if self._chat is not None:
            prompts, adds = [await rendered(self.server, self._chat)], bool(adds)
        encoded = [self._preprocess(prompt) for prompt in prompts if isinstance(prompt, list)]  # all of them or none
        if not encoded:
            encoded = await self._encoded([prompt for prompt in prompts if not isinstance(prompt, list)])
            if adds is not False:
                return await in_thread(self._all_framed, encoded)
        room = self._room(0)
        return encoded if room is None else [body.cut(item, room) for item in encoded]


class Sides(Texts[ScoringRequest]):
    """Queries, then documents, each a prompt of its own."""

    @property
    def num_entries(self) -> int:
        return len(self.body.sides[1])

    def _estimated(self) -> list[int]:
        queries, documents = self.body.sides
        return list(map(estimate_tokens, [*queries, *documents]))

    async def encode(self) -> list[ModelInput]:
        queries, documents = self.body.sides
        encoded = await self._encoded(queries, self.body.max_tokens_per_query)
        encoded += await self._encoded(documents, self.body.max_tokens_per_doc)
        return await in_thread(self._all_framed, encoded)


class Pairs(Texts[ScoringRequest]):
    """A query and a document in each prompt, as the tokenizer's template for pairs joins them."""

    def _estimated(self) -> list[int]:
        sizes = [list(map(estimate_tokens, side)) for side in self.body.sides]
        return [query + document for query, document in paired(*sizes)]

    async def encode(self) -> list[ModelInput]:
        queries, documents = self.body.sides
        first = await self._encoded(queries, self.body.max_tokens_per_query)
        second = await self._encoded(documents, self.body.max_tokens_per_doc)
        return await in_thread(self._all_joined, paired(first, second))

    def _all_joined(self, pairs: list[tuple[ModelInput, ModelInput]]) -> list[ModelInput]:
        room = self._room(self.server.tokenizer.num_special_tokens(2))
        return [self._joined(*(pair if room is None else self._fitted(*pair, room))) for pair in pairs]

    def _fitted(self, first: ModelInput, second: ModelInput, room: int) -> tuple[ModelInput, ModelInput]:
        """Return a pair that is cut to so many tokens together, the longer text first."""
        shorter = min(len(first), len(second), room // 2)
        longer = room - shorter
        limits = (shorter, longer) if len(first) <= len(second) else (longer, shorter)
        return self.body.cut(first, limits[0]), self.body.cut(second, limits[1])


def _parts(texts: Sequence[str | MarkedText]) -> Iterator[tuple[list[str | MarkedText], int]]:
    """Yield texts some at a time, by their lengths, and their bytes."""
    part: list[str | MarkedText] = []
    size = 0
    for text in texts:
        part.append(text)
        size += num_bytes(text if isinstance(text, str) else text.text)
        if size >= _AT_A_TIME:
            yield part, size
            part, size = [], 0
    if part:
        yield part, size
