"""Records become examples: rows of tokens, each with what is to be learnt of it. One maker for each objective.

An example is the rows that stay together in a batch: one, or the two of a preference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.errors import RequestError
from server.chat.reasoning import MARKERS
from training.batch import IGNORED
from training.data.bad_records import RecordError
from training.data.chats import render
from training.data.cleaning import Cleaner
from training.data.records import Chat, Document, LabelledText, Preference, Record
from training.data.tokenizing import SEPARATOR, encode, modalities

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from server.text.tokenizer import Tokenizer
    from training.data.records import Message
    from training.data.tokenizing import Tokens

LongDocuments = Literal["split", "cut"]
_CHARS_A_TOKEN = 64  # at most, on average: answers further back than that are not looked for


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch, before it is padded.

    Attributes:
        token_ids: int32.
        modality_ids: uint8.
        targets: int32, the token that should follow each; IGNORED where nothing is learnt.
        label: the number of the text's class, where there are classes.
    """

    token_ids: NDArray[np.int32]
    modality_ids: NDArray[np.uint8]
    targets: NDArray[np.int32]
    label: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


Example = tuple[Row, ...]


class ExampleMaker:
    """Makes examples for one model: its tokenizer, its modalities, and the longest row."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_length: int, num_modalities: int, long_documents: LongDocuments = "split"
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length, self._num_modalities = max_length, num_modalities
        self._splits = long_documents == "split"
        self._cleaner = Cleaner(tokenizer.special_texts.difference(MARKERS))

    def make(self, record: Record) -> Iterator[Example]:
        """Yield a record's examples: one, or as many as the rows that a long document is split into.

        Raises:
            RecordError: there is nothing to learn in it.
        """
        match record:
            case Document():
                yield from self._document(record)
            case Chat():
                yield (self._chat(record.messages),)
            case Preference():
                answers = (record.chosen, record.rejected)
                yield tuple(self._chat(record.prompt + answer, len(record.prompt)) for answer in answers)
            case LabelledText():
                yield (self._labelled(record),)

    def _document(self, document: Document) -> Iterator[Example]:
        """Title, separator, content and EOS; each token's target is the next one, across rows too."""
        text = self._clean(document.text)
        if title := self._cleaner.clean_title(document.title):
            text = f"{title} {SEPARATOR} {text}"
        at_most = None if self._splits else self._max_length + 1
        tokens = self._encode(text, at_most, is_whole=document.is_whole)
        kinds = modalities(tokens, text, self._num_modalities, is_code=document.is_code)
        ids, eos = tokens.ids, self._tokenizer.eos_id
        if document.is_whole and eos is not None and ids[-1] != eos:
            ids = np.append(ids, np.int32(eos))
        if len(ids) < 2:
            raise RecordError("empty", "it has one token, which nothing follows")
        last = len(ids) - 1 if self._splits else min(len(ids) - 1, self._max_length)
        for begin in range(0, last, self._max_length):
            end = min(begin + self._max_length, last)
            yield (Row(ids[begin:end], kinds[begin:end], ids[begin + 1 : end + 1]),)

    def _chat(self, messages: Sequence[Message], num_prompt: int = 0) -> Row:
        """A conversation as the chat template writes it; the assistant's messages behind the prompt's are learnt."""
        try:
            cleaned = [self._clean_message(message) for message in messages]
            chat = render(
                self._tokenizer, cleaned, num_prompt=num_prompt, num_searched=_CHARS_A_TOKEN * self._max_length
            )
        except RequestError as error:
            raise RecordError("refused by the chat template", str(error)) from None
        tokens = self._encode(chat.text, self._max_length)
        learnt = tokens.inside(chat.answers)
        kinds = modalities(tokens, chat.text, self._num_modalities, code=chat.code)
        targets = np.where(learnt[1:], tokens.ids[1:], np.int32(IGNORED))
        if not learnt[1:].any():
            raise RecordError(
                "without an answer", f"no message of the assistant begins within {self._max_length} tokens"
            )
        return Row(tokens.ids, _as_generated(kinds, learnt), np.append(targets, np.int32(IGNORED)))

    def _labelled(self, record: LabelledText) -> Row:
        """A text as the server reads one that it classifies."""
        text = self._clean(record.text)
        tokens = self._encode(text, self._max_length)
        nothing = np.full(len(tokens), IGNORED, dtype=np.int32)
        return Row(tokens.ids, modalities(tokens, text, self._num_modalities), nothing, record.label)

    def _encode(self, text: str, at_most: int | None, *, is_whole: bool = True) -> Tokens:
        tokens = encode(self._tokenizer, text, at_most=at_most, is_whole=is_whole)
        if not len(tokens):
            raise RecordError("empty", "the tokenizer makes nothing of it")
        return tokens

    def _clean(self, text: str) -> str:
        text = self._cleaner.clean(text)
        if not text.strip():
            raise RecordError("empty", "its text has nothing but white space")
        return text

    def _clean_message(self, message: Message) -> Message:
        content = message.get("content")
        if isinstance(content, list):
            return {**message, "content": [self._clean_part(part) for part in content]}
        return {**message, "content": self._cleaner.clean(content)} if isinstance(content, str) else message

    def _clean_part(self, part: object) -> object:
        if not isinstance(part, dict):
            return part
        return {
            key: self._cleaner.clean(value) if key in ("text", "code") and isinstance(value, str) else value
            for key, value in part.items()
        }


def _as_generated(kinds: NDArray[np.uint8], learnt: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give an answer the modality of the token before it, as the engine does when it generates."""
    places = np.arange(len(kinds))
    sources = np.maximum.accumulate(np.where(learnt, 0, places))
    return kinds[sources]
