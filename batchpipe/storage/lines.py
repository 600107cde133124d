"""A local file of lines that several processes add to, and that one of them shortens now and then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from batchpipe.storage.backends import os_errors
from batchpipe.storage.local import hold_lock

#: Lines per call of ``keep``.
_JUDGED_AT_ONCE = 1_000
#: The first line of a shortened file: this, then its size after that.
_MARK = b'{"pruned":'


class LineFile:
    """``path`` is locked by a file next to it, because a line added while the file is replaced would be lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f".{path.name}.lock")

    def append(self, line: bytes) -> None:
        """Add one line; it is on the disk when this returns. Raises StorageTrouble, OSError."""
        with os_errors(str(self.path)):
            handle = self._added(line)
            try:
                # Without the lock, so that the disk writes together what many add. A file that has taken the place of
                # this one meanwhile has the line, and was on the disk before it had its name.
                os.fsync(handle)
            finally:
                os.close(handle)

    def _added(self, line: bytes) -> int:
        """The handle of the file, with the line added to it in one write. A line that a crash cut off stays a line of
        its own.
        """
        with hold_lock(self._lock, wait=True):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                end = os.fstat(handle).st_size
                cut = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
                text = (b"\n" if cut else b"") + line.rstrip(b"\n") + b"\n"
                if os.write(handle, text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                os.close(handle)
                raise
            return handle

    def newest(self, most: int) -> Iterator[bytes]:
        """The lines of its last ``most`` bytes, oldest first. Raises StorageTrouble (``file_missing``)."""
        with os_errors(str(self.path)), open(self.path, "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - most)
            if start:
                file.seek(start - 1)
                file.readline(most)  # the rest of a cut line, or the end of the line before
            for line in file:
                if not line.startswith(_MARK):
                    yield line

    def prune(self, keep: Callable[[Sequence[bytes]], Iterable[bool]], *, beyond: int) -> bool:
        """Drop the lines that ``keep`` rejects, once the file has more than ``beyond`` bytes, and has doubled since it
        was last shortened. Returns whether that was done. ``keep`` gets up to 1,000 lines at a time.
        """
        if not self._is_long(beyond):
            return False
        with hold_lock(self._lock) as mine:
            if not mine or not self._is_long(beyond):
                return False  # another process is doing so, or just did
            draft = self.path.with_name(f".{self.path.name}.new")
            with os_errors(str(draft)):
                with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                    file.write(_MARK + b"%20d}\n" % 0)
                    lines = self.newest(1 << 62)
                    while some := list(islice(lines, _JUDGED_AT_ONCE)):
                        file.writelines(line for line, kept in zip(some, keep(some), strict=True) if kept)
                    size = file.tell()
                    file.seek(0)
                    file.write(_MARK + b"%20d}\n" % size)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, self.path)
        return True

    def _is_long(self, beyond: int) -> bool:
        size = self._size()
        return size > beyond and size > 2 * self._kept()

    def _size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def _kept(self) -> int:
        """Its size when it was last shortened."""
        try:
            with open(self.path, "rb") as file:
                first = file.readline(64)
            return int(first[len(_MARK) :].strip(b" }\n")) if first.startswith(_MARK) else 0
        except (OSError, ValueError):
            return 0
