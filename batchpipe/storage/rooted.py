"""Local files below allowed roots: the file that is opened is the one that was checked, even if a link appears then.

A path is resolved once, the result is compared with the roots, and then walked from ``/`` without following any link.
A link that appears on the way is an error; an open file or folder cannot be exchanged any more.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from batchpipe.errors import StorageTrouble

#: The flags with which a walk opens a folder: only to pass through it.
_PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_below(real: str, roots: Sequence[str]) -> bool:
    """Whether a path without links lies under one of the roots, which are local paths."""
    return any(real == base or real.startswith(base.rstrip("/") + "/") for base in map(os.path.realpath, roots))


@contextmanager
def opened_folder(path: str, roots: Sequence[str], make: int | None = None) -> Iterator[int]:
    """``open_folder`` during a block."""
    handle = open_folder(path, roots, make)
    try:
        yield handle
    finally:
        os.close(handle)


def open_folder(path: str, roots: Sequence[str], make: int | None = None) -> int:
    """A handle of a folder, for calls with ``dir_fd``; with ``make``, a mode, folders that are missing are made.

    Raises StorageTrouble (``not_allowed`` for one outside the roots, ``place_changed``), OSError.
    """
    real = _real(path, roots)
    with _changed(path):
        return _walk(real, make)


def open_rooted(path: str, flags: int, roots: Sequence[str], mode: int = 0o666) -> int:
    """Open a file as ``os.open`` does, following a link at its end. Raises as ``open_folder``."""
    real = _real(path, roots)
    with _changed(path):
        above = _walk(os.path.dirname(real), None)
        try:
            return os.open(os.path.basename(real), flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=above)
        finally:
            os.close(above)


def _real(path: str, roots: Sequence[str]) -> str:
    real = os.path.realpath(path)
    if not is_below(real, roots):
        found = StorageTrouble(f"{path} does not lie under an allowed root", code="not_allowed")
        found.passes = False
        raise found
    return real


def _walk(real: str, make: int | None) -> int:
    here = os.open("/", _PASS)
    for part in real.strip("/").split("/"):
        if not part:
            continue
        above = here
        try:
            if make is not None:
                here = _enter(part, above, make)
            else:
                here = os.open(part, _PASS, dir_fd=above)
        finally:
            os.close(above)
    return here


def _enter(part: str, above: int, mode: int) -> int:
    with suppress(FileNotFoundError):
        return os.open(part, _PASS, dir_fd=above)
    with suppress(FileExistsError):  # another process may have just made it
        os.mkdir(part, mode, dir_fd=above)
    return os.open(part, _PASS, dir_fd=above)


@contextmanager
def _changed(path: str) -> Iterator[None]:
    """A link has appeared since the check: the next try checks again."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) or (
            isinstance(error, NotADirectoryError) and os.path.isdir(os.path.dirname(path))
        ):
            raise StorageTrouble(f"{path}: a link took the place of a folder or file", code="place_changed") from error
        raise
