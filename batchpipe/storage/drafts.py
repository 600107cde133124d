"""Files in the making: local and remote ways to let nobody see a half one."""

from __future__ import annotations

import os
import posixpath
import secrets
from contextlib import suppress
from typing import BinaryIO, Protocol, cast

from batchpipe.storage.backends import (
    LOCAL_BUFFER,
    OBJECT_STORES,
    REMOTE_WRITE,
    Sink,
    filesystem,
    foreign,
    scheme,
    told,
    trouble,
)


class Draft(Protocol):
    """A file in the making: nobody sees it under its name before ``commit``."""

    file: BinaryIO

    def write(self, data: bytes) -> None:
        """Raises StorageTrouble, for a full disk for instance."""

    def pause(self) -> bool:
        """Give the handle back until the next ``write``; False where the storage cannot continue a file."""

    def commit(self) -> None:
        """Make it safe on disk and give it its name; raises StorageTrouble."""

    def discard(self) -> None:
        """Forget it; raises nothing."""


class LocalDraft:
    """Written beside its place under a name of its own, then renamed."""

    def __init__(self, path: str, mode: int) -> None:
        folder, name = os.path.split(path)
        self._path, self._folder = path, folder
        # Cut, for a name may already be as long as the file system lets it be.
        self._draft = os.path.join(folder, f".{name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.part")
        with told(path):
            handle = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            self.file: BinaryIO = os.fdopen(handle, "wb", LOCAL_BUFFER)

    def write(self, data: bytes) -> None:
        try:
            if self.file.closed:
                self.file = os.fdopen(os.open(self._draft, os.O_WRONLY | os.O_APPEND), "wb", LOCAL_BUFFER)
            self.file.write(data)
        except OSError as error:
            raise trouble(error, self._path) from error

    def pause(self) -> bool:
        with told(self._path):
            self.file.close()
        return True

    def commit(self) -> None:
        try:
            self.write(b"")
            with told(self._path):
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self._draft, self._path)
                sync_folder(self._folder)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            os.unlink(self._draft)


class RemoteDraft:
    """Streamed. Where the storage shows a file before it is complete, under a name of its own until then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._done = False
        with foreign(url):
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

    def commit(self) -> None:
        try:
            with foreign(self._url):
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
                # Closing, which it does by itself when it is thrown away, would make the half file appear.
                self._file.closed = True


def sync_folder(path: str) -> None:
    handle = os.open(path or ".", os.O_RDONLY)
    try:
        # Some network file systems cannot, and then the name is safe or not as they please.
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
