"""What a record is, for each objective, and how a line of JSON becomes one. Knows no files and no tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from training.data.bad_records import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Kind = Literal["language_model", "sft", "dpo", "classification", "reasoning"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
_BOM = b"\xef\xbb\xbf"
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to learn.

    Attributes:
        is_code: whether all of it is code, whatever its fences; None: what its fences enclose is.
        is_whole: whether it ends where the text does, and not where a file was cut.
    """

    text: str
    title: str = ""
    is_code: bool | None = None
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, whose assistant's messages are learnt."""

    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers to it, each of them messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, and the number of its class."""

    text: str
    label: int


Record = Document | Chat | Preference | LabelledText


class _DocumentLine(msgspec.Struct):
    text: str | None = None
    content: str | None = None
    title: str | None = None
    modality: Literal["text", "code"] | None = None


class _ChatLine(msgspec.Struct):
    messages: list[Message]


class _PreferenceLine(msgspec.Struct):
    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]


class _LabelledLine(msgspec.Struct):
    text: str
    label: str | int


class _SoundLine(msgspec.Struct):
    text: str
    label: bool | int


class RecordReader:
    """Makes records of lines, for one objective."""

    def __init__(self, kind: Kind, labels: Sequence[str] = ()) -> None:
        """`labels` are the names of the classes, for the kind "classification"."""
        self._numbers: Mapping[str, int] = {label: number for number, label in enumerate(labels)}
        readers: dict[Kind, tuple[type[msgspec.Struct], Callable[[Any], Record]]] = {
            "language_model": (_DocumentLine, _document),
            "sft": (_ChatLine, _chat),
            "dpo": (_PreferenceLine, _preference),
            "classification": (_LabelledLine, self._labelled),
            "reasoning": (_SoundLine, _sound),
        }
        line, self._make = readers[kind]
        self._decoder = msgspec.json.Decoder(line)

    def read(self, line: bytes) -> Record:
        """Return the record of a line. Of a key that is there twice, the last value counts; others are not looked at.

        Raises:
            RecordError: saying what is wrong.
        """
        try:
            return self._make(self._decoder.decode(line.removeprefix(_BOM).decode()))
        except UnicodeDecodeError as error:
            raise RecordError("not UTF-8", str(error)) from None
        except msgspec.ValidationError as error:
            raise RecordError("malformed", str(error)) from None
        except (msgspec.DecodeError, RecursionError) as error:
            reason = "a character is half a surrogate pair" if _HALF_PAIR.search(line) else str(error)
            raise RecordError("not JSON", reason) from None

    def _labelled(self, line: _LabelledLine) -> Record:
        number = self._numbers.get(line.label, -1) if isinstance(line.label, str) else line.label
        if not 0 <= number < len(self._numbers):
            known = ", ".join(self._numbers)
            raise RecordError("of unknown label", f"{line.label!r:.60}; the model's labels are {known}")
        return LabelledText(line.text, number)


def read_text(content: bytes, *, is_whole: bool) -> Document:
    """Return the document of a piece of a plain text file; `is_whole` if the file ends with it.

    Raises:
        RecordError: it is no UTF-8 text.
    """
    if b"\0" in content:
        raise RecordError("not text", "it has NUL bytes, as binary files and UTF-16 have")
    try:
        return Document(content.removeprefix(_BOM).decode(), is_whole=is_whole)
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", str(error)) from None


def _document(line: _DocumentLine) -> Record:
    text = line.content if line.text is None else line.text
    if text is None:
        raise RecordError("malformed", "neither 'text' nor 'content' is there")
    return Document(text, line.title or "", None if line.modality is None else line.modality == "code")


def _chat(line: _ChatLine) -> Record:
    return Chat(line.messages)


def _preference(line: _PreferenceLine) -> Record:
    """A string is a user's message, or the assistant's answer to it."""

    def messages(value: str | list[Message], role: str) -> list[Message]:
        return [{"role": role, "content": value}] if isinstance(value, str) else value

    chosen, rejected = messages(line.chosen, "assistant"), messages(line.rejected, "assistant")
    if chosen == rejected:
        raise RecordError("without a preference", "'chosen' and 'rejected' are the same")
    return Preference(messages(line.prompt, "user"), chosen, rejected)


def _sound(line: _SoundLine) -> Record:
    if line.label not in (0, 1):
        raise RecordError("of unknown label", f"{line.label!r:.60}; expected true or false")
    return LabelledText(line.text, int(line.label))
