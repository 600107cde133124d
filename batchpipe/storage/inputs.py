"""Inputs: files of others, which are only read; and where inputs and outputs may lie."""

from __future__ import annotations

import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from batchpipe.errors import InvalidInput, StorageTrouble
from batchpipe.model.least_rate import LeastRate
from batchpipe.storage.backends import (
    REMOTE_READ,
    filesystem,
    local_path,
    local_roots,
    open_plain,
    os_errors,
    reason,
    scheme,
    storage_errors,
)
from batchpipe.storage.compression import unpacked
from batchpipe.storage.patience import in_thread, wait
from batchpipe.storage.rooted import open_rooted
from batchpipe.storage.rules import ANY_INPUT, InputRules

#: The fields in which fsspec's storages tell when a file was changed.
_CHANGED = ("mtime", "LastModified", "last_modified", "updated")


Check = Callable[[], None]


@contextmanager
def open_input(url: str, rules: InputRules = ANY_INPUT, check: Check = lambda: None) -> Iterator[BinaryIO]:
    """Open an input, a path or a URL, as one stream of bytes, read in blocks; what is compressed is unpacked.

    ``check`` is called at least every second during a read of a remote one; what it raises ends the read. The file
    that is opened is the one that was checked against the roots, even if a link is put in its place in between.
    Raises StorageTrouble (``input_missing``, ``input_unreachable``: it cannot be reached now), InvalidInput if it is
    not a file, may not be read or breaks the rules; SettingsError if a package is missing.
    """
    with _input_errors(url):
        raw = _open_local(url, rules) if local_path(url) is not None else _open_remote(url, rules, check)
        packed = io.BufferedReader(raw, REMOTE_READ)
    with closing(packed):
        stream = unpacked(packed, url, most_bytes=rules.most_bytes, most_expansion=rules.most_expansion)
        with closing(stream):
            yield stream


def input_info(url: str, rules: InputRules = ANY_INPUT, check: Check = lambda: None) -> tuple[int | None, float | None]:
    """Bytes and time of last change (unix seconds) of an input, None if unknown; raises as open_input."""
    with _input_errors(url):
        if (path := local_path(url)) is not None:
            with os_errors(path):
                handle = _open_regular(path, rules)
            found = os.fstat(handle)
            os.close(handle)
            told_of: tuple[int | None, float | None] = found.st_size, found.st_mtime
        else:
            told_of = _remote_info(url, rules, check)
    if told_of[0] is not None:
        _check_size(url, told_of[0], rules)
    return told_of


def _remote_info(url: str, rules: InputRules, check: Check) -> tuple[int | None, float | None]:
    with storage_errors(url):
        fs, remote = filesystem(url)
        if scheme(url) in ("http", "https"):
            from batchpipe.storage.web import web_size

            return web_size(remote, fs, rules, lambda hop: allowed(hop, rules.roots), check), None
        info = wait(in_thread(lambda: fs.info(remote)), check)
    changed = next((info[key] for key in _CHANGED if info.get(key)), None)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return info.get("size"), changed if isinstance(changed, int | float) else None


def _open_local(url: str, rules: InputRules) -> io.RawIOBase:
    path = local_path(url) or ""
    with os_errors(path):
        file = os.fdopen(_open_regular(path, rules), "rb", 0)
    return _Input(url, lambda size, tick: file.read(size), file.close, rules, lambda: None)


def _open_remote(url: str, rules: InputRules, check: Check) -> io.RawIOBase:
    with storage_errors(url):
        fs, remote = filesystem(url)
        if scheme(url) in ("http", "https"):
            from batchpipe.storage.web import open_web

            page = open_web(remote, fs, rules, lambda hop: allowed(hop, rules.roots), check)
            return _Input(url, page.read, page.close, rules, check)
    with storage_errors(url):
        file = wait(in_thread(lambda: open_plain(url)), check)

    def read(size: int, tick: Check) -> bytes:
        return wait(in_thread(lambda: file.read(size) or b""), tick)

    return _Input(url, read, file.close, rules, check)


class _Input(io.RawIOBase):
    """An input as it is read: its size is limited, and a remote one needs a minimum rate. Raises only our errors."""

    def __init__(
        self,
        url: str,
        read: Callable[[int, Check], bytes],
        close: Callable[[], object],
        rules: InputRules,
        check: Check,
    ) -> None:
        self._url, self._read, self._close, self._rules = url, read, close, rules
        self._came, self._waited, self._mark = 0, 0.0, 0.0
        self._watch = LeastRate(
            "input", rules.rate, check, window=rules.window, clock=lambda: self._waited, error=StorageTrouble
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._mark = time.monotonic()
        with _input_errors(self._url), storage_errors(self._url):
            data = self._read(len(buffer), self._tick)
        self._tick(len(data))
        self._came += len(data)
        _check_size(self._url, self._came, self._rules)
        buffer[: len(data)] = data
        return len(data)

    def _tick(self, count: int = 0) -> None:
        """Only the time spent waiting for data counts: the reader may be slow."""
        now = time.monotonic()
        self._waited, self._mark = self._waited + now - self._mark, now
        self._watch(count)

    def close(self) -> None:
        if not self.closed:
            with suppress(Exception):
                self._close()
        super().close()


def _check_size(url: str, size: int, rules: InputRules) -> None:
    if rules.most_bytes and size > rules.most_bytes:
        message = f"{url}: is larger than {rules.most_bytes:,} bytes; see MAX_INPUT_BYTES"
        raise InvalidInput(message, code="input_too_large")


def allowed(url: str, roots: Sequence[str]) -> bool:
    """Whether a path or URL lies under one of the roots, links and ``..`` resolved; without roots all are allowed."""
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
    try:
        one, other = urlsplit(url), urlsplit(root)
    except ValueError:
        return False
    if (one.scheme.lower(), one.netloc) != (other.scheme.lower(), other.netloc):
        return False
    # A server may decode before it resolves "..": so decode twice, and refuse rather than resolve.
    if ".." in re.split(r"[/\\]", unquote(unquote(one.path))):
        return False
    top = other.path.rstrip("/")
    return one.path.rstrip("/") == top or one.path.startswith(top + "/")


def _open_regular(path: str, rules: InputRules) -> int:
    """A handle of a regular file. Does not wait for a pipe, and checks the file that was opened."""
    _check_regular(path, os.stat(path))  # some devices act when they are opened
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    handle = open_rooted(path, flags, local_roots(rules.roots)) if rules.roots else os.open(path, flags)
    try:
        _check_regular(path, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_regular(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InvalidInput(f"{path}: is a directory; give a JSONL file", code="input_directory")
    if not stat.S_ISREG(found.st_mode):
        hint = "give a JSONL file, or pipe it in as -"
        raise InvalidInput(f"{path}: is not a regular file; {hint}", code="input_no_file")


#: HTTP statuses that may change with another try.
_MAY_PASS = (404, 408, 409, 423, 425, 429)


@contextmanager
def _input_errors(url: str) -> Iterator[None]:
    """The error to raise if the file is an input: it is refused, or waited for, but not for ever."""
    try:
        yield
    except StorageTrouble as error:
        cause = error.__cause__
        status = getattr(cause, "status", None)
        if error.code == "not_allowed":
            raise InvalidInput(error.message, field="input", code=error.code) from error
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise StorageTrouble(f"{url}: no such file", code="input_missing") from cause
        if isinstance(cause, PermissionError) or (isinstance(status, int) and _is_refused(status)):
            raise InvalidInput(f"{url}: may not be read ({reason(cause or error)})", code="input_denied") from cause
        if not error.passes:
            raise InvalidInput(f"{url}: cannot be read ({reason(cause or error)})", code="input_unusable") from cause
        if error.code == "storage_trouble":
            raise StorageTrouble(error.message, code="input_unreachable") from cause
        raise


def _is_refused(status: int) -> bool:
    return 400 <= status < 500 and status not in _MAY_PASS
