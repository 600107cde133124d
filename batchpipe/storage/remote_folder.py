"""What a folder does with the files of an fsspec URL."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, cast

from batchpipe.storage.atomic import Draft, RemoteDraft
from batchpipe.storage.backends import (
    LOCAL_BUFFER,
    OBJECT_STORES,
    REMOTE_READ,
    filesystem,
    open_file,
    os_errors,
    scheme,
)


class RemoteFiles:
    """The files below a URL. See ``Files``."""

    max_open = 8

    def __init__(self, url: str) -> None:
        self._url = url

    def path(self, name: str) -> str:
        base = self._url if self._url.endswith("://") else self._url.rstrip("/") + "/"
        return base + name if name else self._url

    def make(self, path: str) -> None:
        if scheme(path) not in OBJECT_STORES:
            fs, remote = filesystem(path)
            fs.makedirs(remote, exist_ok=True)

    def exists(self, path: str) -> bool:
        fs, remote = filesystem(path)
        return bool(fs.exists(remote))

    def size(self, path: str) -> int:
        fs, remote = filesystem(path)
        return int(fs.info(remote)["size"])

    def remove(self, path: str) -> None:
        fs, remote = filesystem(path)
        fs.rm(remote, recursive=True)

    def copy(self, path: str, to: str) -> None:
        if self.exists(path):
            fs, remote = filesystem(path)
            fs.cp_file(remote, filesystem(to)[1])

    def is_same(self, path: str, other: str) -> bool:
        return False

    def names(self, path: str) -> list[str]:
        fs, remote = filesystem(path)
        return [posixpath.basename(item.rstrip("/")) for item in fs.ls(remote, detail=False)]

    def open(self, path: str) -> BinaryIO:
        return open_file(path, LOCAL_BUFFER)

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        fs, remote = filesystem(path)
        return bytes(fs.cat_file(remote, start=offset, end=offset + length))

    def draft(self, path: str) -> Draft:
        return RemoteDraft(path)

    @contextmanager
    def local_handle(self, path: str, check: Callable[[], None]) -> Iterator[BinaryIO]:
        with os_errors(path), tempfile.TemporaryFile() as copy:
            with closing(open_file(path, REMOTE_READ)) as source:
                while block := source.read(REMOTE_READ):
                    copy.write(block)
                    check()
            copy.seek(0)
            yield cast(BinaryIO, copy)
