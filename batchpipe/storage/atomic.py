"""Unfinished files: local and remote ways to make sure that nobody sees an incomplete one."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, Protocol, cast

from batchpipe.errors import StorageTrouble
from batchpipe.storage.backends import (
    LOCAL_BUFFER,
    OBJECT_STORES,
    REMOTE_WRITE,
    Sink,
    as_trouble,
    filesystem,
    os_errors,
    scheme,
    storage_errors,
)
from batchpipe.storage.rooted import open_folder


class Draft(Protocol):
    """An unfinished file: nobody sees it under its name before ``commit``."""

    file: BinaryIO

    def write(self, data: bytes) -> None:
        """Raises StorageTrouble, for a full disk for instance."""

    def pause(self) -> bool:
        """Close the handle until the next ``write``; False if the storage cannot continue a file."""

    def commit(self, *, more: bool = False) -> None:
        """Make it safe on disk and give it its name; raises StorageTrouble. ``more``: another file of the same folder
        is committed next, and makes this name safe, too.
        """

    def discard(self) -> None:
        """Remove it; raises nothing."""


class LocalDraft:
    """Written next to its place under a temporary name, then renamed. Under ``roots`` (local paths) this happens
    within the folder that was opened at the beginning, even if its name leads elsewhere by then.
    """

    def __init__(self, path: str, mode: int, roots: Sequence[str] = ()) -> None:
        folder, name = os.path.split(path)
        self._path, self._folder, self._roots = path, folder, roots
        # Cut, because a name may already be as long as the file system allows.
        self._name, self._draft_name = name, f".{name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.part"
        self._dir: int | None = None
        with os_errors(path):
            self.file = self._open(os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def _open(self, flags: int, mode: int = 0o666) -> BinaryIO:
        self._dir = open_folder(self._folder, self._roots) if self._roots else None
        try:
            handle = os.open(self._at(self._draft_name), flags | os.O_NOFOLLOW, mode, dir_fd=self._dir)
        except BaseException:
            self._close_folder()
            raise
        return os.fdopen(handle, "wb", LOCAL_BUFFER)

    def _at(self, name: str) -> str:
        return name if self._dir is not None else os.path.join(self._folder, name)

    def _close_folder(self) -> None:
        if self._dir is not None:
            os.close(self._dir)
        self._dir = None

    def write(self, data: bytes) -> None:
        try:
            if self.file.closed:
                self.file = self._open(os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self.file.write(data)
        except OSError as error:
            raise as_trouble(error, self._path) from error

    def pause(self) -> bool:
        with os_errors(self._path):
            self.file.close()
        self._close_folder()
        return True

    def commit(self, *, more: bool = False) -> None:
        try:
            self.write(b"")
            with os_errors(self._path):
                self.file.flush()
                if os.fstat(self.file.fileno()).st_size:  # else its name is all there is, and the folder has that
                    os.fsync(self.file.fileno())
                self.file.close()
                draft, name = self._at(self._draft_name), self._at(self._name)
                os.replace(draft, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
                if not more:
                    sync_folder("." if self._dir is not None else self._folder, self._dir)
            self._close_folder()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError, StorageTrouble):
            if self._roots and self._dir is None:
                self._dir = open_folder(self._folder, self._roots)
            os.unlink(self._at(self._draft_name), dir_fd=self._dir)
        self._close_folder()


class RemoteDraft:
    """Streamed. If the storage shows a file before it is complete, it has a temporary name until then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done = False
        with storage_errors(url):
            self._fs, self._path = filesystem(url)
            self._draft = self._path
            if scheme(url) not in OBJECT_STORES:
                folder, name = posixpath.split(self._path)
                self._draft = posixpath.join(folder, f".{name}.{os.getpid()}-{secrets.token_hex(4)}.part")
                self._fs.makedirs(folder, exist_ok=True)
            self._file = self._fs.open(self._draft, "wb", block_size=REMOTE_WRITE)
        self.file = cast(BinaryIO, Sink(self._file, url))

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def pause(self) -> bool:
        return False

    def commit(self, *, more: bool = False) -> None:
        try:
            with storage_errors(self._url):
                self._file.close()
                if self._draft != self._path:
                    self._fs.mv(self._draft, self._path)
            self._done = True
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        if self._done:
            return
        with suppress(Exception):
            self._file.discard()
        with suppress(Exception):
            if self._draft != self._path:
                self._file.close()
                self._fs.rm(self._draft)
            else:
                # Closing, which it does by itself when it is garbage collected, would make the incomplete file appear.
                self._file.closed = True


def sync_folder(path: str, dir_fd: int | None = None) -> None:
    handle = os.open(path or ".", os.O_RDONLY, dir_fd=dir_fd)
    try:
        # Some network file systems cannot do this; then it is up to them whether the name is safe.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
