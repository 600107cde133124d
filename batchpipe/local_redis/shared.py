"""What users and the supervisor of the private Redis share: its files, its locks, and a small part of the protocol."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchpipe.errors import SettingsError


@dataclass(frozen=True)
class PrivateRedis:
    """A running private server. The URL holds the password, so it is kept out of the repr."""

    url: str = field(repr=False)
    kind: str  #: "redis-server", "valkey-server", "bundled" or "fakeredis"

    @property
    def durable(self) -> bool:
        """Whether the data survives a restart of the server."""
        return self.kind != "fakeredis"


@dataclass(frozen=True)
class ServerRecord:
    """What ``server.json`` says."""

    port: int
    password: str = field(repr=False)
    kind: str
    pid: int | None = None

    @property
    def server(self) -> PrivateRedis:
        return PrivateRedis(url=f"redis://:{self.password}@127.0.0.1:{self.port}/0", kind=self.kind)


def make_ours(folder: Path) -> None:
    """Make the folder accessible to this user only.

    Raises SettingsError if others may have put files there that our server and supervisor would read or overwrite.
    """
    advice = "remove it, or set BATCHPIPE_HOME to another folder, or BATCHPIPE_REDIS_URL to a Redis of yours"
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise SettingsError(f"{folder} is a link or no folder: {advice}") from None
        if folder.lstat().st_uid != os.geteuid():
            raise SettingsError(f"{folder} belongs to another user: {advice}") from None
        raise
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise SettingsError(f"{folder} belongs to another user: {advice}")
        os.fchmod(handle, 0o700)  # from now on nobody else can put anything there
        for name in os.listdir(handle):
            with contextlib.suppress(FileNotFoundError):  # a supervisor is running
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if found.st_uid != os.geteuid() or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                    raise SettingsError(f"{folder / name} is a link, or belongs to another user: {advice}")
    finally:
        os.close(handle)


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether a process holds this lock exclusively."""
    fd = open_lock(path)
    try:
        return not try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def wait_for(condition: Callable[[], bool], deadline: float, pause: float = 0.03) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_record(folder: Path) -> ServerRecord | None:
    try:
        return ServerRecord(**(read_json(folder / "server.json") or {}))
    except TypeError:  # none there, or not one of ours
        return None


def last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def ask(port: int, *commands: tuple[str, ...]) -> list[bytes]:
    """Send commands and return the replies: fewer if the server went away, none if there is no server."""
    replies: list[bytes] = []
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as connection:
        for command in commands:
            parts = [f"${len(part)}\r\n{part}\r\n" for part in command]
            connection.sendall(f"*{len(parts)}\r\n{''.join(parts)}".encode())
        with connection.makefile("rb") as stream:
            while len(replies) < len(commands) and (line := stream.readline().rstrip()):
                replies.append(stream.read(int(line[1:]) + 2) if line.startswith(b"$") else line)
    return replies


def ping(record: ServerRecord) -> list[bytes]:
    return ask(record.port, ("AUTH", record.password), ("PING",))
