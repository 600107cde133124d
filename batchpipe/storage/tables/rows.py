"""A row of data, and what all readers of tables have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from batchpipe.errors import InvalidInput
from batchpipe.storage.rules import ANY_INPUT, InputRules


class Row(NamedTuple):
    """One row of data."""

    number: int  #: from 1, over all files of the input
    line: int  #: where it begins in its file, from 1; of a format without lines: its row
    values: dict[str, Any]  #: by column; JSON values


class Table(Protocol):
    """The rows of all files of an input, read once and in order. Reading raises InvalidInput, StorageTrouble."""

    @property
    def columns(self) -> Sequence[str]:
        """In the order of the input; of JSONL those of its first row."""

    @property
    def file(self) -> str | None:
        """Path or URL of the file that is being read, where there are several."""

    def __iter__(self) -> Iterator[Row]: ...


def _raise(error: InvalidInput) -> None:
    raise error


@dataclass(frozen=True)
class Reading:
    """How tables are read. ``delimiter``, ``header``, ``encoding``: as told; None: found. ``most_line``: bytes of a
    row; 0: no limit. ``check`` is called now and then; what it raises ends the reading. ``bad_row`` gets the error of
    a row that cannot be used; if it does not raise it, reading goes on with the next row.
    """

    delimiter: str | None = None
    header: bool | None = None
    encoding: str | None = None
    rules: InputRules = ANY_INPUT
    check: Callable[[], None] = lambda: None
    most_line: int = 0
    bad_row: Callable[[InvalidInput], None] = _raise
