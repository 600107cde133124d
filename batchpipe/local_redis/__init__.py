"""A private Redis on this machine, found or started if no other is configured.

Every process that needs it calls ``acquire`` and is a **user** as long as it runs. The first user starts a
small **supervisor** process, and the supervisor starts the **server**. Their shared state lies in ``HOME/redis``:

========================  ==================================================================================
``users.lock``            each user holds it shared; the kernel releases it even after a kill -9. The
                          supervisor waits for it exclusively: once it has it, no user is left
                          and the server is stopped
``start.lock``            held by the one user that looks for a server or starts one
``supervisor.lock``       held by the running supervisor
``data.lock``             inherited by the server itself: while it is held, a server writes to the data. So
                          two servers never share it, and no stranger on an old port is sent the password
``server.json``           port, password and process id of the server
``data.json``             which server has written the data: an older one must not start empty next to it
``supervisor.log``        the log of supervisor and server
========================  ==================================================================================

A server that is killed is started again by its supervisor, at the same port and with the same password. A
supervisor that is killed leaves its server running; the next user starts a supervisor, which starts the server
again in the same way, with its data.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchpipe.errors import SettingsError
from batchpipe.local_redis.binaries import candidates, usable
from batchpipe.local_redis.shared import (
    PrivateRedis,
    ServerRecord,
    is_held,
    last_line,
    make_ours,
    open_lock,
    ping,
    read_record,
    try_lock,
    wait_for,
)

LOG_BYTES = 1_000_000


class PrivateRedisHandle:
    """One use of the private Redis. The server runs at least until ``close``, or the end of this process."""

    def __init__(self, server: PrivateRedis, users_fd: int) -> None:
        self.server = server
        self._users_fd: int | None = users_fd

    def close(self) -> None:
        # Only closed, never unlocked: a forked child shares this lock and may still need the server.
        fd, self._users_fd = self._users_fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> PrivateRedisHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def acquire(
    home: Path,
    *,
    timeout: float = 15.0,
    servers: Sequence[tuple[str, str]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> PrivateRedisHandle:
    """Find the private server of ``home`` or start it, and keep it running.

    ``servers`` are the (kind, path) to choose from, for tests; if empty, fakeredis is used. ``environment`` is passed
    to supervisor and server instead of ours, which may hold keys that would outlive their command there.
    """
    folder = home.expanduser().absolute() / "redis"
    deadline = time.monotonic() + timeout
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_ours(folder)
        with contextlib.ExitStack() as undo:
            users_fd = open_lock(folder / "users.lock")
            undo.callback(os.close, users_fd)
            # Waits while a supervisor that has just lost its last user is stopping its server.
            if wait_for(lambda: try_lock(users_fd, fcntl.LOCK_SH), deadline):
                record = _find_or_start(folder, deadline, servers, environment)
                if record:
                    undo.pop_all()
                    return PrivateRedisHandle(record.server, users_fd)
    except OSError as error:
        raise SettingsError(
            f"the private Redis needs a folder it may write to: {error}. "
            "Set BATCHPIPE_HOME to another folder, or BATCHPIPE_REDIS_URL to a Redis of yours"
        ) from error
    raise SettingsError(
        f"the private Redis in {folder} did not answer within {timeout:g} seconds: see supervisor.log there, "
        "or set BATCHPIPE_REDIS_URL to a Redis of yours"
    )


def find_server() -> tuple[str, str] | None:
    """The kind and path of the server that would be started here, or None if there is only fakeredis."""
    found = usable(candidates())
    return (found[0].kind, found[0].path) if found else None


def _find_or_start(
    folder: Path,
    deadline: float,
    servers: Sequence[tuple[str, str]] | None,
    environment: Mapping[str, str] | None,
) -> ServerRecord | None:
    start_fd = open_lock(folder / "start.lock")
    try:
        if not wait_for(lambda: try_lock(start_fd, fcntl.LOCK_EX), deadline):
            return None
        while time.monotonic() < deadline:
            if not is_held(folder / "supervisor.lock"):
                _spawn_supervisor(folder, deadline, servers, environment)
            record = read_record(folder)
            if record and is_held(folder / "data.lock") and ping(record) == [b"+OK", b"+PONG"]:
                return record
            time.sleep(0.03)
        return None
    finally:
        os.close(start_fd)


def _spawn_supervisor(
    folder: Path,
    deadline: float,
    servers: Sequence[tuple[str, str]] | None,
    environment: Mapping[str, str] | None,
) -> None:
    """Start a supervisor and wait for its first message: "ok", "busy" (another one runs) or what is wrong."""
    log = folder / "supervisor.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.truncate(log, 0)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchpipe.local_redis.supervisor", str(folder), json.dumps(servers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
    assert process.stdout is not None
    word = b""
    try:
        while not word.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return
            if not (more := os.read(process.stdout.fileno(), 4096)):
                break
            word += more
    finally:
        process.stdout.close()
        try:
            process.wait(1)  # not the supervisor, which has forked off: it must not become our zombie
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if word not in (b"ok\n", b"busy\n"):
        reason = word.decode(errors="replace").strip() or f"its supervisor ended at once: {last_line(log)}"
        raise SettingsError(f"no private Redis could be started: {reason}")


__all__ = ["PrivateRedis", "PrivateRedisHandle", "acquire", "find_server"]
