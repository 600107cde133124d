"""Multipart uploads, streamed to disk: memory stays flat however large the file is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from batchpipe.sandbox.errors import ApiError

_MAX_FIELD = 64 * 1024


@dataclass
class Form:
    """What a client has sent: small fields, and at most one file, already on disk."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None  #: None: there was no file part
    too_large: bool = False


async def receive_form(request: Request, target: Path, max_bytes: int) -> Form:
    """Read a multipart body; its part `file` is written to `target` piece by piece."""
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or b"boundary" not in parameters:
        raise ApiError(400, "Invalid content type: expected multipart/form-data with a boundary.")
    with target.open("wb") as file:
        parts = _Parts(file, max_bytes)
        parser = MultipartParser(
            parameters[b"boundary"],
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_headers_finished": parts.headers_finished,
            },
        )
        try:
            async for chunk in request.stream():
                parser.write(chunk)
            parser.finalize()
        except FormParserError as error:
            raise ApiError(400, f"Could not parse multipart form: {error}") from None
    return parts.form


class _Parts:
    """The parser's callbacks."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.form = Form()
        self._file = file
        self._left = max_bytes
        self._name = ""
        self._is_file = False
        self._value = bytearray()
        self._header = (bytearray(), bytearray())
        self._disposition = b""

    def begin(self) -> None:
        self._name, self._is_file, self._disposition = "", False, b""
        self._value.clear()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == "file" and self.form.filename is None
        if self._is_file:
            self.form.filename = options.get(b"filename", b"upload").decode("utf-8", "replace")

    def data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            if len(self._value) + end - start > _MAX_FIELD:
                raise ApiError(400, f"The form field '{self._name}' is too long.", param=self._name)
            self._value.extend(data[start:end])
            return
        self._left -= end - start
        if self._left < 0:
            self.form.too_large = True  # read on, so that the client gets the answer
        else:
            self._file.write(memoryview(data)[start:end])

    def end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._value.decode("utf-8", "replace")
