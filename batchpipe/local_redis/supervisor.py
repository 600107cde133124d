"""The supervisor: ``python -m batchpipe.local_redis.supervisor FOLDER SERVERS``. See the package's docstring."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from batchpipe.errors import SettingsError
from batchpipe.local_redis.binaries import Binary, candidates, usable
from batchpipe.local_redis.shared import (
    ServerRecord,
    ask,
    is_held,
    last_line,
    open_lock,
    ping,
    read_json,
    read_record,
    try_lock,
    wait_for,
    write_json,
)

#: How long a server may take to answer or end before it is killed; `appendfsync always` loses nothing then.
STOP_SECONDS = 5.0
#: A server that keeps dying is started again after a pause that doubles up to this.
LONGEST_PAUSE_SECONDS = 5.0

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


class _Supervisor:
    """Starts the server, starts it again when it dies, stops it when its last user is gone."""

    def __init__(self, folder: Path, servers: Sequence[tuple[str, str]] | None) -> None:
        self.folder = folder
        self.servers = servers
        self.record: ServerRecord | None = None
        self.process: subprocess.Popen[bytes] | None = None  #: the server, where it is our child
        self.fake: object | None = None  #: the server, where it is a thread of ours
        # The first byte to read here is a signal's number, or 0: the last user has gone.
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)

    def run(self) -> None:
        lock = open_lock(self.folder / "supervisor.lock")
        if not wait_for(lambda: try_lock(lock, fcntl.LOCK_EX), time.monotonic() + 0.5):
            _say("busy")
            return
        signal.set_wakeup_fd(self.wake_write)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the wake pipe reports signals only if they have handlers
        try:
            self.end_orphan()
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
        # Held until this process ends: new users wait until the server has stopped.
        fcntl.flock(open_lock(self.folder / "users.lock"), fcntl.LOCK_EX)
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
        return self.fake is not None or (self.process is not None and self.process.poll() is None)

    def end_orphan(self) -> None:
        """Tell the server that a killed supervisor has left to end; ``start`` waits for that."""
        if (record := read_record(self.folder)) and is_held(self.folder / "data.lock"):
            _log(f"stopping the server at port {record.port}, which has lost its supervisor")
            _shut_down(record)

    def start(self) -> None:
        """Start a server, if possible at the port where users of the previous one look for it."""
        before = self.record or read_record(self.folder)
        data_fd = open_lock(self.folder / "data.lock")
        if not wait_for(lambda: try_lock(data_fd, fcntl.LOCK_EX), time.monotonic() + STOP_SECONDS):
            os.close(data_fd)
            pid = f" (process {before.pid})" if before and before.pid else ""
            raise SettingsError(f"a server that does not answer{pid} still uses {self.folder}: end it first")
        password = before.password if before else os.urandom(24).hex()
        try:
            binary = self.choose()
            if binary is None:
                data_fd = self.start_fake(before.port if before else 0, password, data_fd)
                return
            # The old port may still be in use for a moment, and a free one may be taken before the server binds it.
            for port in [before.port] * 3 if before else []:
                if self.start_at(binary, port, password, data_fd):
                    return
                time.sleep(0.1)
            for _ in range(3):
                if self.start_at(binary, _free_port(), password, data_fd):
                    return
            raise SettingsError(f"{binary.path} does not start: {last_line(self.folder / 'supervisor.log')}")
        finally:
            if data_fd >= 0:
                os.close(data_fd)  # the server has its own copy

    def choose(self) -> Binary | None:
        """The best server that can read the data lying here; None is fakeredis."""
        found = usable(candidates() if self.servers is None else self.servers)
        wrote = read_json(self.folder / "data.json")
        if wrote is None and (self.folder / "appendonlydir").exists():
            # Older ones do not know this folder, and would start empty.
            wrote = {"family": "redis", "version": [7, 0]}
        if wrote is None:
            return found[0] if found else None
        family, version = wrote["family"], tuple(wrote["version"])
        for binary in found:
            if binary.reads(family, version):
                return binary
        raise SettingsError(
            f"the data in {self.folder} was written by {family} {version[0]}.{version[1]}, and here is only "
            f"{', '.join(map(str, found)) or 'fakeredis'}: install that version or a newer one"
        )

    def start_at(self, binary: Binary, port: int, password: str, data_fd: int) -> bool:
        record = ServerRecord(port=port, password=password, kind=binary.kind)
        # Written first, so that the next supervisor can end the server if this one is killed right here.
        write_json(self.folder / "server.json", asdict(record))
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
        # A server that is still loading its data counts as started: its users wait, and its supervisor may watch.
        while process.poll() is None and ping(record)[:1] != [b"+OK"]:
            time.sleep(0.005)
        if process.poll() is not None:
            return False
        self.process, self.record = process, replace(record, pid=process.pid)
        write_json(self.folder / "server.json", asdict(self.record))
        write_json(self.folder / "data.json", {"family": binary.family, "version": binary.version})
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
        # It checks a password that is sent but does not require one: only loopback protects it.
        fake.fake_server.config[b"requirepass"] = password.encode()
        fake.daemon_threads = True
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        self.fake = fake
        port = fake.server_address[1]
        self.record = ServerRecord(port=port, password=password, kind="fakeredis", pid=os.getpid())
        write_json(self.folder / "server.json", asdict(self.record))
        return -1

    def stop(self) -> None:
        if self.process is None or self.record is None or not self.alive():
            return
        _shut_down(self.record)
        if not wait_for(lambda: not self.alive(), time.monotonic() + STOP_SECONDS, 0.01):
            _log("the server does not stop: killing it")
            self.process.kill()
            wait_for(lambda: not self.alive(), time.monotonic() + STOP_SECONDS, 0.01)


def _shut_down(record: ServerRecord) -> None:
    ask(record.port, ("AUTH", record.password), ("SHUTDOWN", "NOSAVE"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), "supervisor:", text, file=sys.stderr, flush=True)


def _say(word: str) -> None:
    """Report the result, once, to the user that started this supervisor."""
    _log(word)
    with contextlib.suppress(BrokenPipeError):  # it may have gone
        os.write(1, (word.replace("\n", " ") + "\n").encode())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _main(folder: str, servers: str) -> None:
    if os.fork():
        os._exit(0)  # the supervisor is not a child of the user that starts it
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is meant for the command in the foreground
    _Supervisor(Path(folder), json.loads(servers)).run()


if __name__ == "__main__":
    _main(*sys.argv[1:])
