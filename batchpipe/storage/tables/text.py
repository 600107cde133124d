"""CSV and TSV: delimiter and header are found, or told; a row that does not fit its header is an error."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, BinaryIO

from batchpipe.errors import InvalidInput, shortened
from batchpipe.storage.tables.rows import Reading

#: Delimiters that are looked for, and how many lines and bytes of the beginning are looked at.
_DELIMITERS = ",\t;|"
_SAMPLE_LINES, _SAMPLE_BYTES = 20, 1 << 16
#: Characters of one cell: the module's own limit is 131,072, and one for all readers of this process.
_MOST_CELL = 1 << 30
#: Byte order marks, and what they say.
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_WIDE = ("utf-16", "utf-32", "utf_16", "utf_32")


class TextRows:
    """The rows of one CSV file."""

    def __init__(self, stream: io.BufferedReader | BinaryIO, reading: Reading) -> None:
        lines = _Lines(stream, reading.encoding, reading.most_line)
        sample = _sample(lines.begin())
        self.delimiter = reading.delimiter or find_delimiter(sample)
        csv.field_size_limit(max(csv.field_size_limit(), _MOST_CELL))
        self._lines, self._bad_row = lines, reading.bad_row
        self._rows = csv.reader(chain(sample, lines), delimiter=self.delimiter, strict=True)
        first = self._next()
        self._first: list[str] | None = None
        self.has_header = False
        if first is None:
            self.columns: list[str] = []
            return
        self.has_header = looks_like_header(first[1]) if reading.header is None else reading.header
        if self.has_header:
            self.columns = check_header(first[1], first[0])
        else:
            self.columns = [f"column{number}" for number in range(1, len(first[1]) + 1)]
            self._first = first[1]

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        columns, blank = self.columns, 0
        if self._first is not None:
            yield 1, dict(zip(columns, self._first, strict=True))
        while (found := self._next()) is not None:
            line, cells = found
            if not cells:
                blank = blank or line
                continue
            if blank:
                self._bad_row(InvalidInput("is blank; remove it", line=blank))
                blank = 0
            if len(cells) != len(columns):
                self._bad_row(_ragged(line, len(cells), len(columns), named=self.has_header))
            elif cells == columns and self.has_header:
                self._bad_row(InvalidInput("has the header again; remove it", line=line))
            else:
                yield line, dict(zip(columns, cells, strict=True))

    def _next(self) -> tuple[int, list[str]] | None:
        """The next row and the line where it begins."""
        line = self._rows.line_num + 1
        self._lines.begin_row(line)
        try:
            return line, next(self._rows)
        except StopIteration:
            return None
        except csv.Error as error:
            raise InvalidInput(f"is no CSV: {_reason(error)}", line=line) from None


def _sample(lines: Iterator[str]) -> list[str]:
    found: list[str] = []
    size = 0
    for line in islice(lines, _SAMPLE_LINES):
        found.append(line)
        size += len(line)
        if size > _SAMPLE_BYTES:
            break
    return found


def _reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return 'a " that opens here is never closed'
    if "expected after" in str(error):
        return 'after the " that closes a cell comes more text; a " within a cell is written twice'
    return str(error)


def _ragged(line: int, cells: int, columns: int, *, named: bool) -> InvalidInput:
    of = f"the header has {columns} columns" if named else f"the first row has {columns}"
    hint = "; is a delimiter or a quote missing, or one too many?"
    return InvalidInput(f"has {cells} {'cell' if cells == 1 else 'cells'}, and {of}{hint}", line=line)


def check_header(cells: Sequence[str], line: int) -> list[str]:
    """The names of the columns; those without a name get one. Raises InvalidInput if two have the same."""
    names: list[str] = []
    for number, cell in enumerate(cells, 1):
        name = cell.strip() or f"column{number}"
        if name in names:
            raise InvalidInput(
                f"the header has the column {shortened(name, 80)!r} twice; rename one (or is it a row? --no-header)",
                line=line,
            )
        names.append(name)
    return names


def looks_like_header(cells: Sequence[str]) -> bool:
    """Whether the first row names columns: none of its cells is a number, and not all are empty."""
    named = [cell.strip() for cell in cells if cell.strip()]
    return bool(named) and not any(map(_is_number, named))


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def find_delimiter(lines: Sequence[str]) -> str:
    """The one that splits most rows of the beginning into the same number of cells, more than one; else a comma."""
    best, delimiter = (0, 0), ","
    for candidate in _DELIMITERS:
        counts = _widths(lines, candidate)
        if not counts or counts[0] < 2:
            continue
        same = sum(count == counts[0] for count in counts)
        if same * 2 > len(counts) and (same, counts[0]) > best:
            best, delimiter = (same, counts[0]), candidate
    return delimiter


def _widths(lines: Sequence[str], delimiter: str) -> list[int]:
    found: list[int] = []
    with suppress(csv.Error):
        found.extend(len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells)
    return found


class _Lines:
    """Decoded lines of a file, each with its newline; a row, which may have several, has a bounded length."""

    def __init__(self, stream: BinaryIO, encoding: str | None, most: int) -> None:
        self._stream, self._most = stream, most
        self._encoding = encoding or "utf-8"
        self._told = encoding
        self._number = 0
        self._began, self._size = 1, 0
        self._source: Iterator[str] | None = None

    def begin(self) -> Iterator[str]:
        """Itself, after a look at the byte order mark."""
        head = getattr(self._stream, "peek", lambda count: b"")(4)[:4]
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                self._stream.read(len(mark))
                self._encoding = encoding
                break
        return self

    def begin_row(self, line: int) -> None:
        self._began, self._size = line, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._encoding.lower().startswith(_WIDE):
            return self._next_wide()
        line = self._stream.readline(self._most + 1 if self._most else -1)
        if not line:
            raise StopIteration
        self._number += 1
        self._grow(len(line))
        try:
            return line.decode(self._encoding)
        except UnicodeDecodeError as error:
            raise self._undecodable(error) from None

    def _next_wide(self) -> str:
        """Two or four bytes a character: a newline byte may be part of another one."""
        if self._source is None:
            self._source = iter(io.TextIOWrapper(self._stream, self._encoding, newline=""))
        try:
            line = next(self._source)
        except UnicodeDecodeError as error:
            self._number += 1
            raise self._undecodable(error) from None
        self._number += 1
        self._grow(2 * len(line))
        return line

    def _grow(self, count: int) -> None:
        self._size += count
        if self._most and self._size > self._most:
            message = f'is a row of more than {self._most} bytes: is a " not closed? See the setting MAX_LINE_BYTES'
            raise InvalidInput(message, line=self._began)

    def _undecodable(self, error: UnicodeDecodeError) -> InvalidInput:
        what = f"is not {self._encoding.upper()} (byte {error.start + 1})"
        guess = "" if self._told else ": give --encoding, such as cp1252 or latin-1, or save the file as UTF-8"
        return InvalidInput(what + guess, line=self._number, code="input_encoding")


def known_encoding(name: str) -> bool:
    """Whether Python knows this encoding of texts."""
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return False
    return True
