"""A form with one file (multipart/form-data), read as it arrives: fields whole, the file's bytes piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from engine.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_FIELDS, _MAX_FIELD_BYTES, _MAX_HEADER_BYTES = 16, 4096, 8192


class FormReader:
    """Use: iterate over `file_pieces`; then `fields` and `filename` are known.

    Attributes:
        fields: the form's fields by name.
        filename: what the file's part calls itself; None if no file came.
    """

    def __init__(self, content_type: str, file_field: str) -> None:
        """`file_field` names the part that is the file.

        Raises:
            RequestError: the body is no such form.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise RequestError("The body must be multipart/form-data, as OpenAI's clients send files.")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._file_field = file_field
        self._piece = bytearray()  # of the file
        self._name, self._value, self._is_file = "", bytearray(), False
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = bytearray(), bytearray()
        self._is_complete = False
        callbacks: dict[str, Any] = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._extend(
                self._header_name, data[start:end], _MAX_HEADER_BYTES
            ),
            "on_header_value": lambda data, start, end: self._extend(
                self._header_value, data[start:end], _MAX_HEADER_BYTES
            ),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._part_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # a TypedDict of just these

    async def file_pieces(self, body: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
        """Yield the file's bytes, `size` at a time and then the rest.

        Raises:
            RequestError: the form is broken, too large beside its file, or has two files or none.
        """
        async for data in body:
            try:
                self._parser.write(data)
            except MultipartParseError as error:
                raise RequestError(f"The form is broken: {error}") from None
            while len(self._piece) >= size:
                yield bytes(self._piece[:size])
                del self._piece[:size]
        if not self._is_complete:
            raise RequestError("The form ends too soon.")
        if self.filename is None:
            raise RequestError(f"Missing required parameter: '{self._file_field}'.", self._file_field)
        if self._piece:
            yield bytes(self._piece)

    def _extend(self, text: bytearray, data: bytes, most: int) -> None:
        text += data
        if len(text) > most:
            raise RequestError(f"A field or header of the form has more than {most} bytes.")

    def _begin_part(self) -> None:
        self._name, self._value, self._is_file, self._headers = "", bytearray(), False, {}

    def _end_header(self) -> None:
        if len(self._headers) >= _MAX_FIELDS:
            raise RequestError(f"A part of the form has more than {_MAX_FIELDS} headers.")
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise RequestError("A part of the form has no name.")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise RequestError("The parts of the form must not be encoded.")
        self._name = name.decode(errors="replace")
        self._is_file = self._name == self._file_field
        if self._is_file:
            if self.filename is not None:
                raise RequestError(f"The form has '{self._file_field}' twice.", self._file_field)
            self.filename = options.get(b"filename", b"").decode(errors="replace")
        elif self._name in self.fields or len(self.fields) >= _MAX_FIELDS:
            raise RequestError(f"The form has '{self._name}' twice, or more than {_MAX_FIELDS} fields.", self._name)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._piece += data[start:end]
        else:
            self._extend(self._value, data[start:end], _MAX_FIELD_BYTES)

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self._is_complete = True
