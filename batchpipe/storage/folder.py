"""A place for our files, local or remote."""

from __future__ import annotations

import os
import posixpath
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, BinaryIO, cast

from batchpipe.errors import BatchpipeError, InvalidInput, StorageTrouble
from batchpipe.storage.atomic import Draft, LocalDraft, RemoteDraft, sync_folder
from batchpipe.storage.backends import (
    LOCAL_BUFFER,
    OBJECT_STORES,
    REMOTE_READ,
    Sink,
    filesystem,
    foreign,
    local_path,
    local_roots,
    open_file,
    os_errors,
    scheme,
)
from batchpipe.storage.rooted import open_rooted, opened_folder

#: What a person has to repair, not time.
_UNWRITABLE = (
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    NotImplementedError,
)


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
        self._local = local_path(url)
        self._given_roots = roots
        self._roots = local_roots(roots) if self._local is not None else ()

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def is_local(self) -> bool:
        return self._local is not None

    @property
    def max_open(self) -> int:
        """How many files may be open at once with a few dozen MB of buffers."""
        return 64 if self.is_local else 8

    def child(self, name: str) -> Folder:
        """The folder of this name in this one, with the same privacy."""
        return Folder(self.path(name), private=self.private, roots=self._given_roots)

    def path(self, name: str = "") -> str:
        """The full path or URL of a name; raises ValueError for a name that leads out of the folder."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"not a name inside a folder: {name!r}")
        if self._local is not None:
            return os.path.join(self._local, name) if name else self._local
        base = self.url if self.url.endswith("://") else self.url.rstrip("/") + "/"
        return base + name if name else self.url

    def make(self) -> None:
        """Make the folder and those above it that are missing."""
        with foreign(self.url):
            if self._local is not None:
                self._make(self._local)
            elif scheme(self.url) not in OBJECT_STORES:
                fs, path = filesystem(self.url)
                fs.makedirs(path, exist_ok=True)

    def _make(self, path: str) -> None:
        mode = 0o700 if self.private else 0o777
        if not self._roots:
            return _make_folders(path, mode)
        with opened_folder(path, self._roots, make=mode):
            return None

    @contextmanager
    def place(self, name: str) -> Iterator[tuple[str, int | None]]:
        """The path and ``dir_fd`` for ``os`` calls about a name in a local folder."""
        path = self.path(name)
        if not self._roots:
            yield path, None
            return
        with opened_folder(os.path.dirname(path.rstrip("/")), self._roots) as above:
            yield os.path.basename(path.rstrip("/")), above

    def exists(self, name: str = "") -> bool:
        path = self.path(name)
        if self._local is not None:
            return os.path.lexists(path)  # a broken link belongs to somebody, too
        with foreign(path):
            fs, remote = filesystem(path)
            return bool(fs.exists(remote))

    def size(self, name: str) -> int:
        """Bytes; raises StorageTrouble (``file_missing``) if it is not there."""
        path = self.path(name)
        with foreign(path):
            if self._local is not None:
                return os.stat(path).st_size
            fs, remote = filesystem(path)
            return int(fs.info(remote)["size"])

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents; no error if it is not there."""
        path = self.path(name)
        with foreign(path), suppress(FileNotFoundError):
            if self._local is None:
                fs, remote = filesystem(path)
                fs.rm(remote, recursive=True)
                return
            with self.place(name) as (here, above):
                if stat.S_ISDIR(os.stat(here, dir_fd=above, follow_symlinks=False).st_mode):
                    shutil.rmtree(here, dir_fd=above)
                else:
                    os.unlink(here, dir_fd=above)

    def copy(self, name: str, to: str) -> None:
        """Give a file a second name in this folder, by a hard link if possible; a file of that name is replaced. Makes
        the folders that it needs. No error if the file is not there.
        """
        source, target = self.path(name), self.path(to)
        with foreign(source), suppress(FileNotFoundError):
            if self._local is None:
                if self.exists(name):
                    fs, remote = filesystem(source)
                    fs.cp_file(remote, filesystem(target)[1])
                return
            self._make(os.path.dirname(target))
            with self.place(name) as one, self.place(to) as other:
                _copy_local(one, other)

    def is_copied(self, name: str, to: str) -> bool:
        """Whether ``copy`` has given this file its second name: decided by its identity, or else by its size."""
        if not self.exists(name) or not self.exists(to):
            return False
        if self._local is not None and os.path.samefile(self.path(name), self.path(to)):
            return True
        return self.size(name) == self.size(to)

    def names(self, sub: str = "") -> list[str]:
        """The names in the folder, or in the folder ``sub`` of it, sorted; none if it is not there."""
        path = self.path(sub)
        with foreign(path), suppress(FileNotFoundError):
            if self._local is not None:
                return sorted(os.listdir(path))
            fs, remote = filesystem(path)
            return sorted(posixpath.basename(item.rstrip("/")) for item in fs.ls(remote, detail=False))
        return []

    @contextmanager
    def reader(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading, buffered and seekable; raises StorageTrouble (``file_missing``)."""
        path = self.path(name)
        stream = open_file(path, LOCAL_BUFFER, self._roots)
        with closing(stream), os_errors(path):
            yield stream

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes of a file from ``offset``, in one go; nothing stays open."""
        path = self.path(name)
        with foreign(path):
            if self._local is None:
                fs, remote = filesystem(path)
                return bytes(fs.cat_file(remote, start=offset, end=offset + length))
            flags = os.O_RDONLY | os.O_CLOEXEC
            handle = open_rooted(path, flags | os.O_NONBLOCK, self._roots) if self._roots else os.open(path, flags)
            try:
                return os.pread(handle, length, offset)
            finally:
                os.close(handle)

    def draft(self, name: str) -> Draft:
        """Begin a file; makes the folders that it needs. See ``Draft``."""
        path = self.path(name)
        if self._local is None:
            return RemoteDraft(path)
        with foreign(path):
            self._make(os.path.dirname(path))
        return LocalDraft(path, 0o600 if self.private else 0o666, self._roots)

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

    @contextmanager
    def local_handle(self, name: str, check: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
        """A seekable local handle of a file: of the file itself, or of an unnamed copy, which ends with the process.

        ``check`` is called about once a MB while copying; what it raises ends the copying.
        """
        path = self.path(name)
        if self._local is not None:
            with closing(open_file(path, LOCAL_BUFFER, self._roots)) as file, os_errors(path):
                yield file
            return
        with os_errors(path), tempfile.TemporaryFile() as copy:
            with closing(open_file(path, REMOTE_READ)) as source:
                while block := source.read(REMOTE_READ):
                    copy.write(block)
                    check()
            copy.seek(0)
            yield cast(BinaryIO, copy)

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """An unnamed local file, in this folder if that is local; gone after the block or the process."""
        if self._local is not None:
            self.make()
        with temporary(self._local) as file:
            yield file

    def append_line(self, name: str, line: bytes) -> None:
        """Add one line to a local file in one write; a line that a crash cut off stays a line of its own."""
        path = self.path(name)
        if self._local is None:
            raise BatchpipeError(f"{path}: lines can be appended to local files only")
        Folder(os.path.dirname(path), private=self.private).make()
        with os_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600 if self.private else 0o666)
            with os.fdopen(handle, "r+b", 0) as file:
                end = os.fstat(handle).st_size
                cut = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
                file.write((b"\n" if cut else b"") + line.rstrip(b"\n") + b"\n")
                os.fsync(handle)

    def check_writable(self, *names: str) -> None:
        """Make the folder and try to write in it.

        Raises InvalidInput (``output_unwritable``) if that is not possible, or if a folder has one of ``names``.
        """
        probe = f".batchpipe-{secrets.token_hex(4)}"
        try:
            self.make()
            with self.writer(probe) as file:
                file.write(b"\n")
            self.remove(probe)
        except StorageTrouble as error:
            if isinstance(error.__cause__, _UNWRITABLE) or not error.passes:
                raise _unwritable(f"{error}; give a folder that can be written to") from error
            raise
        for name in names:
            if self._local is not None and os.path.isdir(self.path(name)):
                raise _unwritable(f"{self.path(name)}: is a directory; move it away or choose another output")


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


def _unwritable(message: str) -> InvalidInput:
    return InvalidInput(message, field="output", code="output_unwritable")


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
