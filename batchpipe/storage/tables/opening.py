"""Opens the files of a table one after the other, each in the format that its first bytes show."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, Protocol, cast

from batchpipe.errors import InvalidInput, shortened
from batchpipe.model.requests import what_it_looks_like
from batchpipe.storage.backends import Checkpoint
from batchpipe.storage.inputs import open_input
from batchpipe.storage.local import unnamed_file
from batchpipe.storage.tables.objects import ObjectRows
from batchpipe.storage.tables.rows import Reading, Row, Table
from batchpipe.storage.tables.text import TextRows

_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
#: How files begin that are tables, but not as text.
_COLUMNAR = (_PARQUET, _ARROW_FILE, _ARROW_STREAM)
_PIECE = 1 << 20


class _Rows(Protocol):
    """The rows of one file, each with the line where it begins."""

    columns: list[str]

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]: ...


@contextmanager
def open_tables(inputs: Sequence[str], reading: Reading) -> Iterator[Table]:
    """The rows of these files, in order. Raises InvalidInput (a file that is no table, or has other columns than the
    first), StorageTrouble, SettingsError (a package is missing).
    """
    with ExitStack() as stack:
        yield _Tables(inputs, reading, stack)


class _Tables:
    def __init__(self, inputs: Sequence[str], reading: Reading, stack: ExitStack) -> None:
        self._inputs, self._reading, self._stack = inputs, reading, stack
        self.file: str | None = None
        self._told = replace(reading, bad_row=lambda error: reading.bad_row(error.within(self.file)))
        self._rows = self._open(inputs[0])
        self.columns: Sequence[str] = list(self._rows.columns)

    def _open(self, url: str) -> _Rows:
        self.file = url if len(self._inputs) > 1 else None
        try:
            stream = self._stack.enter_context(open_input(url, self._reading.rules, self._reading.check))
            return open_rows(cast("io.BufferedReader[Any]", stream), self._told, self._stack)
        except InvalidInput as error:
            raise error.within(self.file) from None

    def __iter__(self) -> Iterator[Row]:
        number, pace = 0, Checkpoint(self._reading.check)
        for at, url in enumerate(self._inputs):
            if at:
                self._stack.close()
                self._rows = self._open(url)
                self._check_columns()
            rows = iter(self._rows)
            while (found := self._next(rows)) is not None:
                number += 1
                pace(b"")
                yield Row(number, *found)

    def _next(self, rows: Iterator[tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]] | None:
        try:
            return next(rows, None)
        except InvalidInput as error:
            raise error.within(self.file) from None

    def _check_columns(self) -> None:
        """JSONL is checked row by row, where a column is used."""
        found = self._rows.columns
        if isinstance(self._rows, ObjectRows) or not found or set(found) == set(self.columns):
            return
        lacks = [name for name in self.columns if name not in found]
        more = [name for name in found if name not in self.columns]
        what = (
            f"has no column {shortened(lacks[0], 80)!r}" if lacks else f"has the column {shortened(more[0], 80)!r} too"
        )
        message = f"{what}, unlike {self._inputs[0]}: all files of an input need the same columns"
        raise InvalidInput(message, line=1).within(self.file)


def open_rows(stream: io.BufferedReader[Any], reading: Reading, stack: ExitStack) -> _Rows:
    """The rows of one file. Raises InvalidInput."""
    head = stream.peek(64)[:64]
    if head.startswith(_COLUMNAR):
        from batchpipe.storage.tables.columnar import arrow_rows, parquet_rows

        file = _copied(stream, reading, stack)
        return (
            parquet_rows(file) if head.startswith(_PARQUET) else arrow_rows(file, is_stream=head[:4] == _ARROW_STREAM)
        )
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if reading.delimiter is None and begins.startswith(b"{"):
        return ObjectRows(stream, reading)
    if (looks := what_it_looks_like(head)) is not None:
        raise InvalidInput(looks, code="input_format")
    return TextRows(stream, reading)


def _copied(stream: BinaryIO, reading: Reading, stack: ExitStack) -> BinaryIO:
    """A file that can seek, which these formats need; gone with the block."""
    file = stack.enter_context(os.fdopen(unnamed_file(), "w+b"))
    while data := stream.read(_PIECE):
        reading.check()
        file.write(data)
    file.seek(0)
    return file
