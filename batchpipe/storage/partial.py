"""An unfinished download that outlives its process: bytes that have come are not fetched again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import orjson

from batchpipe.errors import StorageTrouble, Unavailable
from batchpipe.storage.backends import os_errors
from batchpipe.storage.folder import Folder
from batchpipe.storage.local_folder import LocalFiles
from batchpipe.storage.scratch import Scratch, temporary

#: A process that is killed loses at most this of what it has downloaded.
_SAVE_BYTES = 16 << 20


class Partial:
    """A local file that downloads fill, try by try. Each try starts over, unless ``resume`` is called first.

    The bytes that ``have`` reports are safe on disk, or were written by this process. Satisfies
    ``model.provider.Resumable``.
    """

    def __init__(self, scratch: Scratch, handle: int, folder: Folder | None, name: str) -> None:
        """``folder`` None: an unnamed file, which cannot be found again."""
        self.scratch = scratch
        self._handle, self._folder, self._name = handle, folder, name
        self._have = self._saved = 0
        self._etag: str | None = None
        self._resumable = True
        self._begins = True
        self._most: int | None = None
        self.restarts = 0  #: how often its bytes had to be thrown away
        if folder is not None:
            self._load(folder)

    @property
    def have(self) -> int:
        return self._have if self._resumable else 0

    @property
    def length(self) -> int:
        """The number of bytes that are there, also if the provider cannot send only the rest."""
        return self._have

    @property
    def etag(self) -> str | None:
        return self._etag

    def next_try(self, *, most: int, size: int | None = None) -> None:
        """Begin a try: it writes the whole file, unless it resumes.

        ``most``: the longest file allowed. ``size``: its bytes, if the provider tells them; a longer file is dropped.
        """
        self._most, self._begins = most, True
        if size is not None and self._have > size:
            self.begin(None, resumable=True)
            self._begins = True

    def resume(self) -> None:
        self._begins = False

    def begin(self, etag: str | None, *, resumable: bool) -> None:
        self.restarts += self._have > 0
        with os_errors(self._name):
            self.scratch.clear()
        self._have, self._etag, self._resumable, self._begins = 0, etag, resumable, False
        if self._saved:
            self._note()  # else the note about the old bytes would be taken to be about the new ones

    def write(self, data: bytes) -> int:
        """Raises StorageTrouble; Unavailable if the file gets too long."""
        if self._begins:
            self.begin(None, resumable=True)
        if self._most is not None and self._have + len(data) > self._most:
            raise Unavailable(f"the provider sends a file that does not end: more than {self._most} bytes")
        self.scratch.sink.write(data)
        self._have += len(data)
        if self._have - self._saved >= _SAVE_BYTES:
            self.save()
        return len(data)

    def save(self) -> None:
        """Make its bytes safe on disk, and note how many they are. Raises StorageTrouble."""
        if self._folder is None or not self._resumable:
            return
        with os_errors(self._name):
            self.scratch.flush()
            os.fdatasync(self._handle)
        self._note()

    def _note(self) -> None:
        self._saved = self.have
        if self._folder is not None:
            with self._folder.writer(f"{self._name}.json") as file:
                file.write(orjson.dumps({"bytes": self._saved, "etag": self._etag}))

    def _load(self, folder: Folder) -> None:
        try:
            with folder.reader(f"{self._name}.json") as file:
                found = orjson.loads(file.read(10_000))
            size, tag = found["bytes"], found["etag"]
        except (StorageTrouble, ValueError, KeyError, TypeError):
            return
        if not isinstance(size, int) or not 0 < size <= os.fstat(self._handle).st_size:
            return
        with os_errors(self._name):
            self.scratch.cut(size)
        self._have = self._saved = size
        self._etag = tag if isinstance(tag, str) else None


@contextmanager
def partial(folder: Folder | None, name: str) -> Iterator[Partial]:
    """The file of this name in a local folder, with what earlier tries have left; an unnamed one if ``folder`` is
    None, or while another process has it open. It stays until ``forget``. Raises StorageTrouble.
    """
    if folder is not None and folder.local is not None:
        handle = _locked(folder, folder.local, name)
        if handle is not None:
            with os.fdopen(handle, "r+b") as file:  # its lock ends with it
                yield Partial(Scratch(file, folder.path(name)), handle, folder, name)
            return
    with temporary(folder.url if folder is not None and folder.is_local else None) as scratch:
        yield Partial(scratch, -1, None, name)


def _locked(folder: Folder, files: LocalFiles, name: str) -> int | None:
    """A handle that no other process has; None if one has: a worker that lost its lease, and does not know it yet."""
    folder.child(os.path.dirname(name)).make()
    with os_errors(folder.path(name)), files.at(folder.path(name)) as (path, above):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(path, flags, 0o600, dir_fd=above)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # or a file system without locks
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink == 0:  # removed in between
            os.close(handle)
            return None
        return handle


def forget(folder: Folder, name: str) -> None:
    """Remove such a file; raises nothing: what is left goes with the workspace."""
    for one in (f"{name}.json", name):
        with suppress(StorageTrouble):
            folder.remove(one)


def prune(folder: Folder, most: int) -> None:
    """Keep at most so many files in a folder, the newest. Raises StorageTrouble."""
    path = folder.path()
    with os_errors(path), suppress(FileNotFoundError):
        found = sorted((entry for entry in os.scandir(path) if entry.is_file()), key=lambda one: one.stat().st_mtime)
        for entry in found[: max(len(found) - most, 0)]:
            with suppress(FileNotFoundError):
                os.unlink(entry.path)
