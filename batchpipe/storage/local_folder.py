"""What a folder does with local files."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import BinaryIO

from batchpipe.storage.atomic import Draft, LocalDraft, sync_folder
from batchpipe.storage.backends import LOCAL_BUFFER, open_file, os_errors
from batchpipe.storage.rooted import open_rooted, opened_folder


class LocalFiles:
    """The files below ``base``. With ``roots`` (local paths) each is opened, named and removed within the same folder
    that was checked. See ``Files``.
    """

    max_open = 64

    def __init__(self, base: str, private: bool, roots: Sequence[str]) -> None:
        self._base, self._private, self._roots = base, private, roots

    def path(self, name: str) -> str:
        return os.path.join(self._base, name) if name else self._base

    @contextmanager
    def at(self, path: str) -> Iterator[tuple[str, int | None]]:
        """The path and ``dir_fd`` for ``os`` calls about a file."""
        if not self._roots:
            yield path, None
            return
        folder, name = os.path.split(path.rstrip("/"))
        with opened_folder(folder, self._roots) as above:
            yield name, above

    def make(self, path: str) -> None:
        mode = 0o700 if self._private else 0o777
        if not self._roots:
            return _make_folders(path, mode)
        with opened_folder(path, self._roots, make=mode):
            return None

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)  # a broken link belongs to somebody, too

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def remove(self, path: str) -> None:
        with self.at(path) as (here, above):
            if stat.S_ISDIR(os.stat(here, dir_fd=above, follow_symlinks=False).st_mode):
                shutil.rmtree(here, dir_fd=above)
            else:
                os.unlink(here, dir_fd=above)

    def copy(self, path: str, to: str) -> None:
        self.make(os.path.dirname(to))
        with self.at(path) as one, self.at(to) as other:
            _copy_local(one, other)

    def is_same(self, path: str, other: str) -> bool:
        return os.path.samefile(path, other)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def open(self, path: str) -> BinaryIO:
        return open_file(path, LOCAL_BUFFER, self._roots)

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        flags = os.O_RDONLY | os.O_CLOEXEC
        handle = open_rooted(path, flags | os.O_NONBLOCK, self._roots) if self._roots else os.open(path, flags)
        try:
            return os.pread(handle, length, offset)
        finally:
            os.close(handle)

    def draft(self, path: str) -> Draft:
        self.make(os.path.dirname(path))
        return LocalDraft(path, self._mode, self._roots)

    @contextmanager
    def local_handle(self, path: str, check: Callable[[], None]) -> Iterator[BinaryIO]:
        with closing(self.open(path)) as file, os_errors(path):
            yield file

    @property
    def _mode(self) -> int:
        return 0o600 if self._private else 0o666


def _copy_local(source: tuple[str, int | None], target: tuple[str, int | None]) -> None:
    """Copies by a hard link, or by bytes if the file system has no links. Safe on disk when this returns. Each argument
    is a path and the ``dir_fd`` that it belongs to.
    """
    (path, above), (to, into) = source, target
    folder, name = os.path.split(to)
    draft = os.path.join(folder, f".{name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        os.link(path, draft, src_dir_fd=above, dst_dir_fd=into, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        _copy_bytes(source, (draft, into))
    os.replace(draft, to, src_dir_fd=into, dst_dir_fd=into)
    with suppress(FileNotFoundError):  # both are names of one file: then nothing was replaced
        os.unlink(draft, dir_fd=into)
    sync_folder(folder, into)


def _copy_bytes(source: tuple[str, int | None], target: tuple[str, int | None]) -> None:
    (path, above), (draft, into) = source, target
    begin = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with (
            os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above), "rb") as file,
            os.fdopen(os.open(draft, begin, 0o666, dir_fd=into), "wb") as copy,
        ):
            shutil.copyfileobj(file, copy)
            copy.flush()
            os.fsync(copy.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=into)
        raise


def _make_folders(path: str, mode: int) -> None:
    """Like os.makedirs, but with this mode for every folder that it makes."""
    for last in (False, True):
        try:
            return os.mkdir(path, mode)
        except FileNotFoundError:
            if last:  # such as in /proc, where nothing can be created
                raise
            if not os.path.isdir(os.path.dirname(path)):  # another process may have just made it
                _make_folders(os.path.dirname(path), mode)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
            return None
    return None
