"""A place for our files, local or remote."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import BinaryIO, Protocol

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.storage.atomic import Draft
from batchpipe.storage.backends import local_path, local_roots, os_errors, storage_errors
from batchpipe.storage.local_folder import LocalFiles
from batchpipe.storage.remote_folder import RemoteFiles

#: What a person has to repair, not time.
_UNWRITABLE = (
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    NotImplementedError,
)


class Files(Protocol):
    """What differs between local and remote files. Takes full paths or URLs; raises whatever its library raises, which
    ``Folder`` turns into StorageTrouble.
    """

    #: How many files may be open at once with a few dozen MB of buffers.
    max_open: int

    def path(self, name: str) -> str:
        """The full path or URL of a name; of the folder itself if it is empty."""

    def make(self, path: str) -> None:
        """Make a folder and those above it, where there are folders."""

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def remove(self, path: str) -> None: ...

    def copy(self, path: str, to: str) -> None: ...

    def is_same(self, path: str, other: str) -> bool:
        """Whether both are names of one file; False where that cannot be."""

    def names(self, path: str) -> list[str]: ...

    def open(self, path: str) -> BinaryIO: ...

    def read_at(self, path: str, offset: int, length: int) -> bytes: ...

    def draft(self, path: str) -> Draft: ...

    def local_handle(self, path: str, check: Callable[[], None]) -> AbstractContextManager[BinaryIO]: ...


class Folder:
    """A place for files: a local folder, or an fsspec URL such as ``s3://bucket/jobs`` or ``memory://jobs``.

    A ``private`` folder makes files that only their owner may read (0600, folders 0700), unless the storage has its
    own rules. Names are relative, with ``/`` between their parts. Every method may raise StorageTrouble.

    With ``roots`` a local folder is used only if it really lies under one of them: all files are opened, named and
    removed within the same folder that was checked. Otherwise raises StorageTrouble (``not_allowed``).
    """

    def __init__(self, url: str, *, private: bool = False, roots: Sequence[str] = ()) -> None:
        self.url = url
        self.private = private
        self._given_roots = roots
        path = local_path(url)
        #: Its files if they are local, for what only those can do.
        self.local = LocalFiles(path, private, local_roots(roots)) if path is not None else None
        self._files: Files = self.local or RemoteFiles(url)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def is_local(self) -> bool:
        return self.local is not None

    @property
    def max_open(self) -> int:
        """How many files may be open at once with a few dozen MB of buffers."""
        return self._files.max_open

    def child(self, name: str) -> Folder:
        """The folder of this name in this one, with the same privacy."""
        return Folder(self.path(name), private=self.private, roots=self._given_roots)

    def path(self, name: str = "") -> str:
        """The full path or URL of a name; raises ValueError for a name that leads out of the folder."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"not a name inside a folder: {name!r}")
        return self._files.path(name)

    def make(self) -> None:
        """Make the folder and those above it that are missing."""
        with storage_errors(self.url):
            self._files.make(self.path())

    def exists(self, name: str = "") -> bool:
        path = self.path(name)
        with storage_errors(path):
            return self._files.exists(path)

    def size(self, name: str) -> int:
        """Bytes; raises StorageTrouble (``file_missing``) if it is not there."""
        path = self.path(name)
        with storage_errors(path):
            return self._files.size(path)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents; no error if it is not there."""
        path = self.path(name)
        with storage_errors(path), suppress(FileNotFoundError):
            self._files.remove(path)

    def copy(self, name: str, to: str) -> None:
        """Give a file a second name in this folder, by a hard link if possible; a file of that name is replaced. Makes
        the folders that it needs. No error if the file is not there.
        """
        source, target = self.path(name), self.path(to)
        with storage_errors(source), suppress(FileNotFoundError):
            self._files.copy(source, target)

    def is_copied(self, name: str, to: str) -> bool:
        """Whether ``copy`` has given this file its second name: decided by its identity, or else by its size."""
        if not self.exists(name) or not self.exists(to):
            return False
        return self._files.is_same(self.path(name), self.path(to)) or self.size(name) == self.size(to)

    def names(self, sub: str = "") -> list[str]:
        """The names in the folder, or in the folder ``sub`` of it, sorted; none if it is not there."""
        path = self.path(sub)
        with storage_errors(path), suppress(FileNotFoundError):
            return sorted(self._files.names(path))
        return []

    @contextmanager
    def reader(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading, buffered and seekable; raises StorageTrouble (``file_missing``)."""
        path = self.path(name)
        with closing(self._files.open(path)) as stream, os_errors(path):
            yield stream

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes of a file from ``offset``, in one go; nothing stays open."""
        path = self.path(name)
        with storage_errors(path):
            return self._files.read_at(path, offset, length)

    def draft(self, name: str) -> Draft:
        """Begin a file; makes the folders that it needs. See ``Draft``."""
        path = self.path(name)
        with storage_errors(path):
            return self._files.draft(path)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """Write a file that appears, complete, when the block ends, and not at all if the block raises."""
        draft = self.draft(name)
        try:
            with os_errors(self.path(name)):
                yield draft.file
        except BaseException:
            draft.discard()
            raise
        draft.commit()

    def remove_drafts(self, name: str) -> None:
        """Remove what killed writers of this name left behind. Only its current owner may call this."""
        base = posixpath.basename(name)
        folder = posixpath.dirname(name)
        for other in self.names(folder):
            if other.startswith(f".{base}.") and other.endswith(".part"):
                self.remove(posixpath.join(folder, other))

    def local_handle(self, name: str, check: Callable[[], None] = lambda: None) -> AbstractContextManager[BinaryIO]:
        """A seekable local handle of a file: of the file itself, or of an unnamed copy, which ends with the process.

        ``check`` is called about once a MB while copying; what it raises ends the copying.
        """
        return self._files.local_handle(self.path(name), check)

    def check_writable(self, *names: str) -> None:
        """Make the folder and try to write in it.

        Raises InvalidInput (``output_unwritable``) if that is not possible, or if a folder has one of ``names``.
        """
        probe = f".batchpipe-{secrets.token_hex(4)}"
        try:
            self.make()
            self._try_to_write(probe)
        except StorageTrouble as error:
            if isinstance(error.__cause__, _UNWRITABLE) or not error.passes:
                raise _unwritable(f"{error}; give a folder that can be written to") from error
            raise
        for name in names:
            if self.is_local and os.path.isdir(self.path(name)):
                raise _unwritable(f"{self.path(name)}: is a directory; move it away or choose another output")

    def _try_to_write(self, name: str) -> None:
        if not self.is_local:  # some storages take a file when it is complete
            with self.writer(name) as file:
                file.write(b"\n")
            self.remove(name)
            return
        draft = self.draft(name)  # it need not be safe on disk
        try:
            draft.write(b"\n")
            with os_errors(self.path(name)):
                draft.file.flush()
        finally:
            draft.discard()


def _unwritable(message: str) -> InvalidInput:
    return InvalidInput(message, field="output", code="output_unwritable")
