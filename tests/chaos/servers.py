"""The servers of the soak: a Redis that keeps what it acknowledged, providers, and folders for jobs."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchpipe.local_redis import find_server
from batchpipe.sandbox import Sandbox
from batchpipe.store import Store
from tests.chaos.faketime import FakeTime
from tests.forkserver import STALL_SECONDS, Child, ForkServer

PREFIX = "{batchpipe}:"
DATABASES = 64


def until(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.03) -> Any:
    """Poll until something is true; returns it. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
    return value


class DurableRedis:
    """A redis-server that writes each command to disk before it answers; kill -9 and it comes back with all it knew."""

    def __init__(self, forkserver: ForkServer, folder: Path) -> None:
        found = find_server()
        if found is None:
            raise FileNotFoundError("no redis-server, valkey-server or bundled one was found")
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        options = {"--port": self.port, "--bind": "127.0.0.1", "--databases": DATABASES, "--dir": folder}
        options |= {"--save": "", "--appendonly": "yes", "--appendfsync": "always"}
        self._command = [found[1], *(str(part) for option in options.items() for part in option)]
        self._forkserver, self._folder = forkserver, folder
        self._time = FakeTime.found(folder)
        self.start()

    def start(self) -> None:
        # by the forkserver, which ends all that it has started when we are gone
        log, env = self._folder / "redis.log", dict(os.environ) | (self._time.environment if self._time else {})
        self._process = self._forkserver.start("program", self._folder, log, env, command=self._command)
        until(self._answers, STALL_SECONDS, "Redis is up")

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")  # not while it still reads its file
        return False

    def kill(self) -> None:
        self._process.kill()

    def command(self, words: str) -> None:
        """What an operator types, as one line."""
        with socket.create_connection(("127.0.0.1", self.port), STALL_SECONDS) as connection:
            connection.sendall(f"{words}\r\n".encode())
            answer = connection.recv(1024)
        assert answer.startswith(b"+"), f"{words}: {answer!r}"

    @property
    def has_clock(self) -> bool:
        """Whether its clock can be moved: libfaketime is there."""
        return self._time is not None

    def set_clock(self, seconds: float) -> None:
        """From now on its clock is ahead of the real one by so much, or behind."""
        assert self._time is not None
        self._time.set(seconds)

    def url(self, database: int) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"


class SharedServers:
    """One Redis and one forkserver, which many lanes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.forkserver = ForkServer(folder / "forkserver.log", "tests.chaos.commands")
        self.redis = DurableRedis(self.forkserver, folder / "redis")

    def __enter__(self) -> SharedServers:
        return self

    def __exit__(self, *error: object) -> None:
        self.forkserver.close()


@dataclass
class Job:
    """A job that was submitted, and what must come of it."""

    key: str
    rows: list[dict[str, Any]]
    output: Path
    options: dict[str, Any]
    refused: set[str] = field(default_factory=set)  #: rows that the provider refuses for good
    cancelled: bool = False  #: somebody asked to cancel it
    refused_whole: bool = False  #: a batch of it is refused as a whole: its rows fail
    shares: Job | None = None  #: its output is this earlier job's, maybe under another name
    foreign: Path | None = None  #: a file in its output that is somebody else's, and must not be touched
    gone: bool = False  #: its workspace was deleted while it ran
    landed: bool = False  #: a person has landed it: what turns out not to have run is not sent again
    heard: Path | None = None  #: the receivers of its end leave its id in this folder
    id: str = ""


#: Short times, so that what heals by itself heals soon.
PACE = {
    "LEASE_SECONDS": "3",
    "POLL_MIN_SECONDS": "0.3",
    "POLL_MAX_SECONDS": "2",
    "CREATE_GRACE_SECONDS": "1",
    "SWEEP_SECONDS": "0.5",
    "CONTROL_TIMEOUT_SECONDS": "3",
    "TRANSFER_TIMEOUT_SECONDS": "10",
    "ACCOUNT_PAUSE_SECONDS": "1",
    "ACCOUNTS__DEFAULT__LOOKS_PER_SECOND": "200",
    "WORKSPACE_WAIT_SECONDS": "3",
    "FILES_PATIENCE_SECONDS": "60",  # a shard of one row that is in no file is waited for so long
    "KEEP_WORKSPACE": "1",
}


class Lane:
    """A provider, a database and a folder, for one job after the other or for many at once."""

    def __init__(
        self, shared_servers: SharedServers, number: int, *, pace: dict[str, str] | None = None, **sandbox: Any
    ) -> None:
        self.shared_servers, self.number = shared_servers, number
        self.folder = shared_servers.folder / f"lane{number}"
        self.folder.mkdir()
        times = {"validating_seconds": 0.05, "finalizing_seconds": 0.02, "cancelling_seconds": 0.05}
        self.sandbox = Sandbox(**{**times, **sandbox}).start()
        self.pace = {**PACE, **(pace or {})}
        self.store = Store.connect(shared_servers.redis.url(number), prefix=PREFIX)
        self._children: list[Child] = []
        self._number = 0

    def close(self) -> None:
        self.end_children()
        self.store.connection.client.close()
        self.sandbox.stop()

    def clear(self) -> None:
        """Forget the last case. Redis, too: it is this lane's own database."""
        self.end_children()
        self.store.connection.client.flushdb()
        self.sandbox.reset()

    def end_children(self) -> None:
        for child in self._children:
            child.kill()
        self._children.clear()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(self.folder),
            "BATCHPIPE_HOME": str(self.folder / "home"),
            "BATCHPIPE_REDIS_URL": self.shared_servers.redis.url(self.number),
            "BATCHPIPE_PREFIX": PREFIX,
            "OPENAI_BASE_URL": self.sandbox.base_url,
            "OPENAI_API_KEY": "sk-chaos-not-a-real-key",
            **{f"BATCHPIPE_{name}": value for name, value in self.pace.items()},
        }

    def start(
        self, role: str, *, chaos: dict[str, str] | None = None, more: dict[str, str] | None = None, **arguments: Any
    ) -> Child:
        """Start a child in this lane; ``chaos`` are the variables that arm it, ``more`` others."""
        self._number += 1
        log = self.folder / f"{role}{self._number}.log"
        armed = {f"CHAOS_{name}": value for name, value in (chaos or {}).items()}
        environment = self.environment | armed | (more or {})
        child = self.shared_servers.forkserver.start(role, self.folder, log, environment, **arguments)
        self._children.append(child)
        return child

    # -- jobs ------------------------------------------------------------------------------------------------------

    def new_job(self, rows: list[dict[str, Any]], **options: Any) -> Job:
        """Write the input of a job; nothing is submitted yet."""
        self._number += 1
        name = f"job{self._number}-{time.monotonic_ns()}"
        source = self.folder / f"{name}.jsonl"
        source.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        output = self.folder / name
        return Job(name, rows, output, {"input": str(source), "output": str(output), **options})

    def start_submit(self, job: Job, *, chaos: dict[str, str] | None = None) -> Child:
        told = str(self.folder / f"{job.key}.id")
        return self.start("submit", chaos=chaos, key=job.key, told=told, **job.options)

    def output_is_refused(self, job: Job) -> bool:
        """Whether submit has said that what lies in the output is a stranger's."""
        return (self.folder / f"{job.key}.id.refused").exists()

    def is_submitted(self, job: Job) -> bool:
        told = self.folder / f"{job.key}.id"
        job.id = told.read_text() if told.exists() else ""
        return bool(job.id)

    def submit(self, job: Job) -> None:
        """Submit, and again under the same key until it is done."""
        for _ in range(60):
            self.start_submit(job).wait(STALL_SECONDS)
            if self.is_submitted(job):
                return
        raise AssertionError(f"{job.key} cannot be submitted")


def requests(count: int, *, name: str = "r") -> list[dict[str, Any]]:
    """Rows r0, r1, ... of a chat."""
    return [
        {
            "custom_id": f"{name}{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Tell of {name}{number}"}]},
        }
        for number in range(count)
    ]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
