"""JSONL: one object a line, each a row of data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import orjson

from batchpipe.errors import InvalidInput
from batchpipe.model.requests import parse_object
from batchpipe.storage.tables.rows import Reading


class ObjectRows:
    """The rows of one JSONL file."""

    def __init__(self, stream: BinaryIO, reading: Reading) -> None:
        self._bad_row = reading.bad_row
        self._lines = _lines(stream, reading.most_line)
        self._first = next(self._lines, None)
        self.columns: list[str] = list(_object(*self._first)) if self._first is not None else []

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._first is None:
            return
        yield self._first[0], _object(*self._first)
        for number, line in self._lines:
            try:
                values = _object(number, line)
            except InvalidInput as error:
                self._bad_row(error)
            else:
                yield number, values


def _lines(stream: BinaryIO, most: int) -> Iterator[tuple[int, bytes]]:
    blank = 0
    for number, line in enumerate(iter(partial(stream.readline, most + 1 if most else -1), b""), 1):
        if most and len(line) > most:
            raise InvalidInput(f"is longer than {most} bytes; see the setting MAX_LINE_BYTES", line=number)
        if line.isspace():
            blank = blank or number
            continue
        if blank:
            raise InvalidInput("is blank; remove it", line=blank)
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _object(number: int, line: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else parse_object(line, number)
