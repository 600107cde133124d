"""Files that are always local: input from stdin, logs, locks."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from batchpipe.storage.backends import os_errors


@contextmanager
def temporary_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """The path of a private file with these lines, during the block."""
    with os_errors(tempfile.gettempdir()), tempfile.NamedTemporaryFile(prefix="batchpipe-", suffix=".jsonl") as file:
        file.writelines(lines)
        file.flush()
        yield file.name


def text_of(path: str, most: int) -> str:
    """The first characters of a person's own text file. Raises OSError, UnicodeDecodeError."""
    with open(path, encoding="utf-8-sig") as file:
        return file.read(most)


@contextmanager
def replaced_file(path: str) -> Iterator[BinaryIO]:
    """A person's own file, which has its name when it is complete. Raises StorageTrouble, InvalidInput."""
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    draft = os.path.join(folder, f".{name}.{os.getpid()}.part")
    with os_errors(path):
        try:
            with open(draft, "wb") as file:
                yield file
            os.replace(draft, os.path.join(folder, name))
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise


def unnamed_file() -> int:
    """A handle of an empty, unnamed file of our own, which is gone with the last process that has it open."""
    with os_errors(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def open_log(path: Path) -> IO[bytes]:
    """A private log file, for appending; makes the folders that it needs."""
    with os_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def touch(path: Path) -> None:
    """Make a file, or set its time to now."""
    with os_errors(str(path)):
        path.touch()


def keep_private(folder: Path, pattern: str) -> None:
    """Make the files that this process writes from now on, and existing ones of this name, readable only by their
    owner: libraries that keep files for us do not do so.
    """
    os.umask(0o077)
    for path in folder.glob(pattern):
        if path.is_file() and not path.is_symlink():
            with suppress(PermissionError):  # another user's
                path.chmod(0o600)


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """The text of a private file, made at its first use; later callers read what the first one made."""
    with os_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-") as draft:  # 0600
                draft.write(f"{make()}\n")
                draft.flush()
                with suppress(FileExistsError):
                    os.link(draft.name, path)  # complete or not at all
        return path.read_text(encoding="utf-8").strip()


@contextmanager
def hold_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock between processes during the block; False if another has it and ``wait`` is not set.

    The system releases it when its holder ends, however that ends.
    """
    with os_errors(str(path)):
        handle = _opened(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
    try:
        yield held
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def check_variables(path: Path) -> None:
    """Whether ``set_variables`` could change this file. Raises OSError, UnicodeDecodeError."""
    path = path.resolve()
    if path.exists():
        path.read_text(encoding="utf-8")
    handle, draft = _draft_beside(path)
    os.close(handle)
    os.unlink(draft)


def _draft_beside(path: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")  # only its owner may read it


def set_variables(path: Path, lines: Sequence[str]) -> None:
    """Put these lines (``NAME=value``) into a file of variables, in place of earlier ones of the same names; all other
    lines stay as they are, and a kill leaves it whole: keys may be in it. Raises OSError, UnicodeDecodeError.
    """
    path = path.resolve()  # the file that a link leads to
    old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = {_variable(line) for line in lines} - {None}
    kept = [line for line in old if _variable(line) not in names]
    handle, draft = _draft_beside(path)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write("\n".join([*kept, *lines]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(draft, path.stat().st_mode & 0o777)
        os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):  # it has its name
            os.unlink(draft)


def _variable(line: str) -> str | None:
    """The name that a line of a file of variables sets, in capitals."""
    name, equals, _ = line.partition("=")
    words = name.upper().split()
    if words[:1] == ["EXPORT"]:
        del words[0]
    return words[0] if equals and len(words) == 1 else None
