"""The lines of a batch's input: split as their bytes come, parsed, and checked as OpenAI does before any is run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from server.storage.batches import Result

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ERRORS = 100  # that a batch reports
_MAX_ID = 512  # characters of a custom_id
_BOM = b"\xef\xbb\xbf"
_NULL = msgspec.Raw(b"null")
Json = dict[str, Any]


class Line(msgspec.Struct):
    """One request of a batch; its body stays as it was written."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Loose(msgspec.Struct):
    """A line of which nothing is known yet."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = _NULL


class _Head(msgspec.Struct):
    """What is looked at in a body before it is validated as any other request's."""

    model: Any = None
    stream: Any = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: dict[str, int | None] | None = None
    completion_tokens_details: dict[str, int | None] | None = None
    input_tokens_details: dict[str, int | None] | None = None
    output_tokens_details: dict[str, int | None] | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_line_of = msgspec.json.Decoder(Line).decode
_loose_of = msgspec.json.Decoder(_Loose).decode
_head_of = msgspec.json.Decoder(_Head).decode
_answer_of = msgspec.json.Decoder(_Answer).decode


class LineSplitter:
    """Bytes in, numbered lines out; a line of more than `max_bytes` is None, and is never whole in memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._number = max_bytes, 0
        self._begun = bytearray()
        self._is_too_long = False

    def feed(self, data: bytes, *, is_last: bool = False) -> list[tuple[int, bytes | None]]:
        """Return the lines that end in these bytes, blank ones left out; with `is_last` also one without an end."""
        *ended, rest = data.split(b"\n")
        lines = [(self._number + 1, self._end(piece)) for piece in ended]
        self._extend(rest)
        if is_last:
            lines.append((self._number + 1, self._end(b"")))
        return [(number, line) for number, line in lines if line != b""]

    def _end(self, piece: bytes) -> bytes | None:
        self._extend(piece)
        line = None if self._is_too_long else bytes(self._begun).removeprefix(b"" if self._number else _BOM).strip()
        self._number += 1
        self._begun, self._is_too_long = bytearray(), False
        return line

    def _extend(self, piece: bytes) -> None:
        if len(self._begun) + len(piece) > self._max_bytes:
            self._begun, self._is_too_long = bytearray(), True
        elif not self._is_too_long:
            self._begun += piece


class LineChecker:
    """Checks lines in turn, and counts them; errors are OpenAI's, at most MAX_ERRORS of lines."""

    def __init__(self, endpoint: str, models: tuple[str, ...], max_lines: int, max_bytes: int) -> None:
        self._errors: list[Json] = []
        self.num_lines = 0
        self._endpoint, self._models, self._max_lines, self._max_bytes = endpoint, models, max_lines, max_bytes
        self._seen: set[bytes] = set()  # digests of custom ids, which may be long

    @property
    def is_full(self) -> bool:
        """Whether the rest need not be looked at."""
        return len(self._errors) >= MAX_ERRORS or self.num_lines > self._max_lines

    def check(self, lines: Iterable[tuple[int, bytes | None]]) -> None:
        """Take in the next lines."""
        for number, line in lines:
            self.num_lines += 1
            if not self.is_full and (fault := self._fault(line)) is not None:
                self._add(number, *fault)

    def end(self) -> list[Json]:
        """Take in the end of the file; all errors."""
        if not self.num_lines:
            self._add(None, "empty_file", "The input file has no requests.")
        elif self.num_lines > self._max_lines:
            message = f"The input file has more than {self._max_lines} requests, the most that a batch may have."
            self._add(None, "too_many_requests", message)
        return self._errors

    def _add(self, number: int | None, code: str, message: str, param: str | None = None) -> None:
        self._errors.append({"code": code, "line": number, "message": message, "param": param})

    def _fault(self, line: bytes | None) -> tuple[str, str, str | None] | None:
        """What is wrong with a line: code, message and parameter."""
        if line is None:
            return "line_too_long", f"This line has more than {self._max_bytes} bytes, the most that is taken.", None
        try:
            line.decode()
            found = _loose_of(line)
        except UnicodeDecodeError:
            return "invalid_json_line", "This line is not valid UTF-8.", None
        except (msgspec.DecodeError, RecursionError):
            return "invalid_json_line", "This line is not parseable as a JSON object.", None
        for name in ("custom_id", "method", "url", "body"):
            if getattr(found, name) in (None, _NULL):
                return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
        if not isinstance(found.custom_id, str) or not 0 < len(found.custom_id) <= _MAX_ID:
            return "invalid_custom_id", f"'custom_id' must be a string of 1 to {_MAX_ID} characters.", "custom_id"
        digest = hashlib.blake2b(found.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in self._seen:
            message = f"The custom_id '{found.custom_id}' is that of an earlier line; each must be unique in its batch."
            return "duplicate_custom_id", message, "custom_id"
        self._seen.add(digest)
        if found.method != "POST":
            return "invalid_method", "'method' must be 'POST'.", "method"
        if found.url != self._endpoint:
            return "invalid_url", f"'url' must be the batch's endpoint, '{self._endpoint}'.", "url"
        return self._fault_of_body(bytes(found.body))

    def _fault_of_body(self, body: bytes) -> tuple[str, str, str | None] | None:
        try:
            model = _head_of(body).model
        except msgspec.DecodeError:
            return "invalid_type", "'body' must be an object.", "body"
        if model is not None and model not in self._models:
            message = f"The model '{model}' does not exist here; this server has '{self._models[0]}'."
            return "model_not_found", message[:1000], "body.model"
        return None


def parse(line: bytes) -> Line:
    """Return a line that was checked."""
    return _line_of(line)


def streams(line: Line) -> bool:
    """Whether a request asks for a stream, which no batch can give."""
    return _head_of(line.body).stream not in (None, False)


def answered(number: int, custom_id: str, request_id: str, status: int, body: bytes) -> Result:
    """Return what an answer brought: a line of the output file, or of the error file if the status is not 200."""
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    data = _write(request_id, custom_id, response, None)
    if status != 200:
        return Result(number, data, is_error=True)
    try:
        usage = _answer_of(body).usage or _Usage()
    except msgspec.ValidationError:  # another API's idea of it
        usage = _Usage()
    of_input = usage.input_tokens_details or usage.prompt_tokens_details or {}
    of_output = usage.output_tokens_details or usage.completion_tokens_details or {}
    return Result(
        number,
        data,
        is_error=False,
        input_tokens=usage.input_tokens or usage.prompt_tokens,
        cached_tokens=of_input.get("cached_tokens") or 0,
        output_tokens=usage.output_tokens or usage.completion_tokens,
        reasoning_tokens=of_output.get("reasoning_tokens") or 0,
    )


def not_run(number: int, custom_id: str, request_id: str, code: str, message: str) -> Result:
    """Return the line of the error file of a request that was not run."""
    return Result(number, _write(request_id, custom_id, None, {"code": code, "message": message}), is_error=True)


def _write(request_id: str, custom_id: str, response: Json | None, error: Json | None) -> bytes:
    line = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(line) + b"\n"
