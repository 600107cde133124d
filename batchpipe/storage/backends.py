"""Local files and fsspec behind one way of opening and one set of errors."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from batchpipe.errors import FILE_MISSING, BatchpipeError, InvalidInput, SettingsError, StorageTrouble
from batchpipe.storage.rooted import open_rooted

#: Bytes that a reader or writer of a local file buffers; 64 of them may be open at once.
LOCAL_BUFFER = 1 << 17
#: The same for remote files. 5 MiB is the smallest part that S3 accepts.
REMOTE_READ, REMOTE_WRITE = 1 << 20, 5 << 20

#: Storages with files that appear only when complete, and without folders.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"})
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_EXTRAS |= dict.fromkeys(("abfs", "abfss", "az", "adl"), "azure")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_PACE = 1 << 20
_LOCAL = ("file", "local")


def local_path(url: str) -> str | None:
    """The path of a plain path or a ``file://`` URL; None for other URLs."""
    if not _URL.match(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets without an address: opening it raises the error
        return None
    if parts.scheme.lower() not in _LOCAL or parts.netloc not in ("", "localhost"):
        return None
    return unquote(parts.path)


def local_roots(roots: Sequence[str]) -> tuple[str, ...]:
    """The allowed roots that are local paths."""
    return tuple(path for root in roots if (path := local_path(root)) is not None)


def read_lines(stream: BinaryIO, limit: int = -1) -> Iterator[bytes]:
    r"""The lines of a stream without their ``\n``, split at ``\n`` only; the last one may lack it.

    With a ``limit`` (bytes, newline included) a longer line comes in pieces of that size, so that a file
    without newlines does not fill the memory.
    """
    source = stream if limit < 0 else iter(partial(stream.readline, limit), b"")
    for line in source:
        yield line[:-1] if line.endswith(b"\n") else line


class Checkpoint:
    """Yields the lines and calls ``check`` now and then: about every MB, and at least every 1,024 lines."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._left = _PACE

    def __call__(self, line: bytes) -> None:
        self._left -= len(line) + 1024
        if self._left <= 0:
            self._left = _PACE
            self._check()


def scheme(url: str) -> str:
    return re.split(r"::|://", url, maxsplit=1)[0].lower()


def filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL and the path in it. Do not keep it: fsspec has one for each thread and fork."""
    kind = scheme(url)
    if kind in _LOCAL:
        raise InvalidInput(f"{url}: a file on another host; give a path or file:///path", code="url_unknown")
    options: dict[str, Any] = {}
    try:
        if kind in OBJECT_STORES:
            options["use_listings_cache"] = False
        elif kind in ("http", "https"):
            from aiohttp import ClientTimeout

            # The default ends every transfer after five minutes, even if it makes progress.
            options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        import fsspec  # where all is local, nothing of it is needed

        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(kind)
        hint = f'pip install "batchpipe[{extra}]"' if extra else str(error)
        raise SettingsError(f"{url}: a package for {kind}:// is missing: {hint}") from error
    except ValueError as error:
        raise InvalidInput(f"{url}: no path or URL that can be used: {error}", code="url_unknown") from error
    return fs, path


def check_scheme(url: str) -> None:
    """Raises InvalidInput for a URL that no storage knows, SettingsError if its package is missing. Imports none."""
    for kind in re.split(r"::", url.partition("://")[0]):
        kind = kind.lower()
        from fsspec.registry import known_implementations, registry

        known = registry.get(kind) or known_implementations.get(kind)
        if known is None:
            raise InvalidInput(f"{url}: {kind}:// is no storage that is known here", code="url_unknown")
        module = known["class"].partition(".")[0].partition(":")[0] if isinstance(known, dict) else "fsspec"
        if find_spec(module) is None:
            raise SettingsError(f"{url}: a package for {kind}:// is missing: {_install_hint(kind, module)}")


def _install_hint(kind: str, module: str) -> str:
    extra = _EXTRAS.get(kind)
    return f'pip install "batchpipe[{extra}]"' if extra else f"pip install {module}"


def open_file(url: str, buffer: int, roots: Sequence[str] = ()) -> BinaryIO:
    """Open for reading; the caller closes it. Raises StorageTrouble with its cause.

    ``roots``: local paths; a local file is opened only if, with links resolved, it lies under one of them; else raises
    StorageTrouble (``not_allowed``).
    """
    if (path := local_path(url)) is not None:
        with os_errors(path):
            if roots:
                return os.fdopen(open_rooted(path, os.O_RDONLY | os.O_NONBLOCK, roots), "rb", buffer)
            return open(path, "rb", buffering=buffer)
    with storage_errors(url):
        file = open_plain(url)
    return cast(BinaryIO, io.BufferedReader(file, REMOTE_READ))


def open_plain(url: str) -> io.RawIOBase:
    """A remote file, unbuffered. Its reads raise StorageTrouble."""
    fs, remote = filesystem(url)
    # From the web by a single GET (with a size it makes no request before that, which not every site allows);
    # elsewhere by ranges of our own buffer's size, because theirs are up to 50 MB.
    how = {"block_size": 0, "size": 1} if scheme(url) in ("http", "https") else {"cache_type": "none"}
    return _Reader(fs.open(remote, "rb", **how), url)


class _Reader(io.RawIOBase):
    """A file of fsspec; any error that it raises becomes StorageTrouble."""

    def __init__(self, file: Any, where: str) -> None:
        self._file = file
        self._where = where
        # memory:// has one file object, so one position, for all readers.
        self._at = 0 if isinstance(file, io.BytesIO) else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with storage_errors(self._where):
            if self._at is not None and whence == io.SEEK_CUR:
                offset, whence = offset + self._at, io.SEEK_SET
            at = int(self._file.seek(offset, whence))
        self._at = None if self._at is None else at
        return at

    def tell(self) -> int:
        return int(self._file.tell()) if self._at is None else self._at

    def readinto(self, buffer: Any) -> int:
        with storage_errors(self._where):
            if self._at is not None:
                self._file.seek(self._at)
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        if self._at is not None:
            self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Sink(io.RawIOBase):
    """Wraps a file that is being written: any error becomes StorageTrouble. Closing this does not close that file."""

    def __init__(self, file: Any, where: str) -> None:
        self._file = file
        self._where = where

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with storage_errors(self._where):
            self._file.write(data)
        return len(data)


@contextmanager
def os_errors(where: str) -> Iterator[None]:
    """Wraps the use of local files: an OSError becomes StorageTrouble."""
    try:
        yield
    except BrokenPipeError:  # from the reader of the output: a file cannot break a pipe
        raise
    except OSError as error:
        raise as_trouble(error, where) from error


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Wraps calls of a storage: any error becomes StorageTrouble, because each storage of fsspec raises its own."""
    try:
        yield
    except BatchpipeError:
        raise
    except Exception as error:
        cause: BaseException = error
        if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
            cause = error.__cause__  # its http storage calls every error "not found"
        raise as_trouble(cause, where) from cause


#: Errors that need a person, not time.
_LASTING = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EROFS),
        *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ENOTSUP, errno.EXDEV, errno.EILSEQ),
    }
)


def as_trouble(error: BaseException, where: str) -> StorageTrouble:
    """Converts an error of another library to ours. ``passes`` tells whether another try may succeed."""
    if isinstance(error, FileNotFoundError):
        return StorageTrouble(f"{where}: no such file", code=FILE_MISSING)
    found = StorageTrouble(f"{where}: {reason(error)}")
    found.passes = not lasts(error)
    return found


def lasts(error: BaseException) -> bool:
    """Whether an error of a file system or storage lasts until a person repairs something."""
    if isinstance(error, OSError) and error.errno in _LASTING:
        return True
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError | NotImplementedError):
        return True
    # From impossible URLs, and names with NUL bytes. A response that is not JSON is a ValueError, too, but may pass.
    bad_url = any(kind.__name__ == "InvalidURL" for kind in type(error).__mro__)
    return bad_url or type(error) is ValueError or isinstance(error, UnicodeEncodeError)


def reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}".rstrip(": ")
