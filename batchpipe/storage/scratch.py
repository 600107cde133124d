"""Unnamed local files, which are gone with the block or the process that uses them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from batchpipe.storage.backends import Sink, os_errors


@contextmanager
def temporary(folder: str | None = None) -> Iterator[Scratch]:
    """An unnamed file in a local folder, else in the folder of temporary files; gone with the block or process."""
    where = folder or tempfile.gettempdir()
    with os_errors(where), tempfile.TemporaryFile(dir=where) as file:
        yield Scratch(file, where)


class Scratch:
    """An unnamed local file: filled through ``sink``, then read from the start or at any place."""

    def __init__(self, file: Any, where: str) -> None:
        self._file = file
        self._where = where
        self._unflushed = False
        self.sink = cast(BinaryIO, Sink(self, where))

    def write(self, data: bytes) -> None:
        """Add to its end; raises OSError, while the ``sink`` raises StorageTrouble."""
        self._unflushed = True
        self._file.write(data)

    def put(self, offset: int, data: bytes | bytearray) -> None:
        """Write at a given place; not to be mixed with the ``sink``. Raises StorageTrouble."""
        with os_errors(self._where):
            while data:
                done = os.pwrite(self._file.fileno(), data, offset)
                offset, data = offset + done, data[done:]

    def flush(self) -> None:
        """Flush its buffer; raises OSError."""
        self._file.flush()
        self._unflushed = False

    def cut(self, size: int) -> None:
        """Keep its first ``size`` bytes, and continue writing from there; raises OSError."""
        self.flush()
        self._file.truncate(size)
        self._file.seek(size)

    def clear(self) -> None:
        """Empty it; raises OSError."""
        self.cut(0)

    def lines(self) -> Iterator[bytes]:
        r"""Its lines, each with its ``\n``."""
        with os_errors(self._where):
            self._file.seek(0)
            self._unflushed = False
        return iter(self._file)

    def at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        with os_errors(self._where):
            if self._unflushed:
                self._file.flush()
                self._unflushed = False
            return os.pread(self._file.fileno(), length, offset)
