"""The data rows of a job's input, kept in its workspace: results are joined with them, also when the input has changed
or gone.

A zstd file of JSON lines: a header ``{"columns": [...]}``, then one array of values a row, in the order of the input.
A row of JSONL that has other columns than the first is an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from batchpipe.errors import BatchpipeError
from batchpipe.storage import Folder
from batchpipe.storage.compression import open_zstd_reader, open_zstd_writer

#: The token in the name of a file that ``submit`` itself has written.
SUBMIT = "submit"


def rows_file_of(token: str) -> str:
    """Its name, for the turn with this token."""
    return f"rows-{token}.jsonl.zst"


class DataRowsWriter:
    """Writes the file; it has its name after ``commit``."""

    def __init__(self, workspace: Folder, name: str, columns: Sequence[str]) -> None:
        self.name = name
        self._columns = list(columns)
        self._draft = workspace.draft(name)
        self._file = open_zstd_writer(self._draft.file)
        self._file.write(orjson.dumps({"columns": self._columns}) + b"\n")

    def write(self, values: dict[str, Any]) -> None:
        if list(values) == self._columns:
            self._file.write(orjson.dumps(list(values.values())) + b"\n")
        else:
            self._file.write(orjson.dumps(values) + b"\n")

    def commit(self) -> None:
        """Raises StorageTrouble."""
        self._file.close()
        self._draft.commit()

    def discard(self) -> None:
        self._draft.discard()


class DataRows:
    """The rows of such a file, in order, each a dict of JSON values by column."""

    def __init__(self, columns: Sequence[str], lines: Iterator[bytes], name: str) -> None:
        self.columns = list(columns)
        self._lines, self._name = lines, name

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns = self.columns
        for line in self._lines:
            try:
                found = orjson.loads(line)
            except orjson.JSONDecodeError:
                raise BatchpipeError(f"{self._name}: the rows of the input are damaged", code="rows_lost") from None
            yield found if isinstance(found, dict) else dict(zip(columns, found, strict=True))


@contextmanager
def open_data_rows(workspace: Folder, name: str) -> Iterator[DataRows]:
    """Raises StorageTrouble (``file_missing``), BatchpipeError if it is damaged."""
    with workspace.reader(name) as file, open_zstd_reader(file) as lines:
        try:
            columns = orjson.loads(lines.readline())["columns"]
        except (orjson.JSONDecodeError, KeyError, TypeError, EOFError):
            raise BatchpipeError(f"{name}: the rows of the input are damaged", code="rows_lost") from None
        yield DataRows(columns, iter(lines), name)
