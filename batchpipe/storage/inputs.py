"""Inputs: somebody else's files, which are only read; and where inputs and outputs may lie."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.storage.backends import REMOTE_READ, filesystem, foreign, local_path, open_file, reason, told

#: Where the storages of fsspec tell when a file was changed.
_CHANGED = ("mtime", "LastModified", "last_modified", "updated")


@contextmanager
def open_input(url: str) -> Iterator[BinaryIO]:
    """Open an input, a path or a URL, as one stream of bytes, read in blocks.

    Raises StorageTrouble (``input_missing``, or it cannot be reached now), InvalidInput for what is no file
    or may not be read, SettingsError where a package is missing.
    """
    with _input_told(url):
        if (path := local_path(url)) is not None:
            _check_regular(path)
        stream = open_file(url, REMOTE_READ)
    with closing(stream), told(url):
        yield stream


def input_info(url: str) -> tuple[int | None, float | None]:
    """Bytes and time of last change (unix seconds) of an input, None where not told; raises as open_input."""
    with _input_told(url):
        if (path := local_path(url)) is not None:
            found = _check_regular(path)
            return found.st_size, found.st_mtime
        with foreign(url):
            fs, remote = filesystem(url)
            info = fs.info(remote)
    changed = next((info[key] for key in _CHANGED if info.get(key)), None)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return info.get("size"), changed if isinstance(changed, int | float) else None


def allowed(url: str, roots: Sequence[str]) -> bool:
    """Whether a path or URL lies under one of the roots, links and ``..`` resolved; no roots allow all."""
    return not roots or any(_is_under(url, root) for root in roots)


def check_allowed(url: str, roots: Sequence[str], what: str) -> None:
    """Raises InvalidInput (``not_allowed``) if ``url`` is not ``allowed``; ``what`` is ``input``, say."""
    if not allowed(url, roots):
        raise InvalidInput(f"{url} does not lie under an allowed root", field=what, code="not_allowed")


def _is_under(url: str, root: str) -> bool:
    path, base = local_path(url), local_path(root)
    if path is not None and base is not None:
        real, real_base = os.path.realpath(path), os.path.realpath(base)
        return real == real_base or real.startswith(real_base.rstrip("/") + "/")
    if path is not None or base is not None or "::" in url:
        return False
    one, other = urlsplit(url), urlsplit(root)
    if (one.scheme.lower(), one.netloc) != (other.scheme.lower(), other.netloc):
        return False
    # A server may decode before it resolves "..": so twice decoded, and refused rather than resolved.
    if ".." in re.split(r"[/\\]", unquote(unquote(one.path))):
        return False
    top = other.path.rstrip("/")
    return one.path.rstrip("/") == top or one.path.startswith(top + "/")


def _check_regular(path: str) -> os.stat_result:
    with told(path):
        found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise InvalidInput(f"{path}: is a directory; give a JSONL file", code="input_directory")
    if not stat.S_ISREG(found.st_mode):
        hint = "give a JSONL file, or pipe it in as -"
        raise InvalidInput(f"{path}: is not a regular file; {hint}", code="input_no_file")
    return found


@contextmanager
def _input_told(url: str) -> Iterator[None]:
    """What failing to open means if the file is an input."""
    try:
        yield
    except StorageTrouble as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise StorageTrouble(f"{url}: no such file", code="input_missing") from cause
        if cause and (isinstance(cause, PermissionError) or getattr(cause, "status", None) in (401, 403)):
            raise InvalidInput(f"{url}: may not be read ({reason(cause)})", code="input_denied") from cause
        raise
