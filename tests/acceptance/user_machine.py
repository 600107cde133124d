"""What the acceptance tests share: machines, processes, rows, and a Redis.

A `Machine` is one user's machine: a folder, an environment of its own, and the processes that were started there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from batchpipe.sandbox import Sandbox
from batchpipe.sandbox.batches import Batch
from tests.forkserver import STALL_SECONDS, Child, ForkServer

CHAT = "/v1/chat/completions"
API_KEY = "sk-acceptance-not-a-real-key"
#: Short times, so that what heals by itself heals soon.
PACE = {
    "BATCHPIPE_POLL_MIN_SECONDS": "0.3",
    "BATCHPIPE_SWEEP_SECONDS": "0.5",
    "BATCHPIPE_LEASE_SECONDS": "3",
    "BATCHPIPE_CREATE_GRACE_SECONDS": "1",
}
FAST = {"validating_seconds": 0.05, "finalizing_seconds": 0.02, "cancelling_seconds": 0.05}


def until(condition: Callable[[], Any], seconds: float = 45.0, what: str = "this", every: float = 0.03) -> Any:
    """Poll until something is true; returns it. ``every`` is longer where a look costs more."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(every)
    return value


def need(program: str) -> str:
    """The path of a program. Where there is none the test is skipped, but fails where CI is set."""
    if found := shutil.which(program):
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{program} is not installed")
    pytest.skip(f"{program} is not installed")


class Finished(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


def is_read_late(variable: str) -> bool:
    """Nobody reads this variable at import or before, so a fork may still be given it. (Celery's REMAP_SIGTERM is read
    so, and all of Python's own.)
    """
    return variable.startswith("BATCHPIPE_") or variable in (
        "HOME",
        "LANG",
        "PATH",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "SHOP_BROKER",
    )


class Forked:
    """A child of the forkserver with the face of a ``subprocess.Popen``."""

    def __init__(self, child: Child, args: list[str]) -> None:
        self._child, self.args = child, args
        self.pid = child.pid

    def poll(self) -> int | None:
        return self._child.code

    def wait(self, timeout: float = STALL_SECONDS) -> int:
        try:
            return self._child.wait(timeout)
        except AssertionError:
            raise subprocess.TimeoutExpired(self.args, timeout) from None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Process:
    """A process that was started by a test; its output goes to files."""

    def __init__(self, popen: subprocess.Popen[bytes] | Forked, out: Path, err: Path) -> None:
        self.popen, self._out, self._err = popen, out, err

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def finish(self, seconds: float = 40.0) -> Finished:
        """Wait for its end."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.popen.args!r} still runs after {seconds:g} s:\n{self.err}") from None
        return Finished(code, self.out, self.err)

    def kill(self) -> None:
        """kill -9, of this process and of no other."""
        self.popen.kill()
        self.popen.wait()

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        self.popen.send_signal(signal.SIGINT)

    def children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        return found


class Machine:
    """One user's machine. Without a Redis URL its commands use the private Redis of its home."""

    def __init__(self, folder: Path, sandbox: Sandbox | None, redis_url: str | None, **extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.sandbox, self.redis_url = folder, sandbox, redis_url
        self.home = folder / "home"
        self.interpreter = Path(sys.executable)  #: what its commands are run with
        self.forkserver: ForkServer | None = None  #: starts them, if they are to start at once
        self._processes: list[Process] = []
        self._numbers = count()
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            "BATCHPIPE_HOME": str(self.home),
            **PACE,
        }
        if redis_url is not None:
            self.environment["BATCHPIPE_REDIS_URL"] = redis_url
        if sandbox is not None:
            self.environment |= {"OPENAI_BASE_URL": sandbox.base_url, "OPENAI_API_KEY": API_KEY}
        self.environment |= extra

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(
        self, *arguments: str | Path, stdin: bytes | None = None, env: Mapping[str, str | None] | None = None
    ) -> Process:
        """Start `batchpipe ARGUMENTS...` here. A variable that is None in `env` is taken away."""
        environment = self._environment(env)
        same_python = self.interpreter == Path(sys.executable)
        if self.forkserver is not None and same_python and all(map(is_read_late, environment)):
            return self._fork(self.forkserver, [str(word) for word in arguments], stdin, environment)
        return self.start_python("-m", "batchpipe", *arguments, stdin=stdin, env=env)

    def start_python(
        self, *arguments: str | Path, stdin: bytes | None = None, env: Mapping[str, str | None] | None = None
    ) -> Process:
        return self.start_program(self.interpreter, *arguments, stdin=stdin, env=env)

    def start_program(
        self,
        *command: str | Path,
        stdin: bytes | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Process:
        out, err, source = self._files(stdin)
        with out.open("wb") as out_file, err.open("wb") as err_file, source.open("rb") as in_file:
            popen = subprocess.Popen(
                [*map(str, command)],
                stdin=in_file,
                stdout=out_file,
                stderr=err_file,
                cwd=self.folder,
                env=self._environment(env),
                start_new_session=True,
            )
        return self.adopt(Process(popen, out, err))

    def _fork(
        self, forkserver: ForkServer, words: list[str], stdin: bytes | None, environment: dict[str, str]
    ) -> Process:
        """The command in a process that has imported all it needs."""
        out, err, source = self._files(stdin)
        child = forkserver.start(
            "command", self.folder, out, environment, errors=err, source=source, session=True, words=words
        )
        return self.adopt(Process(Forked(child, ["batchpipe", *words]), out, err))

    def _files(self, stdin: bytes | None) -> tuple[Path, Path, Path]:
        """Where a process writes its output and its errors, and what it reads."""
        number = next(self._numbers)  # several threads may start processes here
        out, err, source = (self.folder / f"command{number}.{kind}" for kind in ("out", "err", "in"))
        out.touch()
        err.touch()
        source.write_bytes(stdin or b"")
        return out, err, source

    def _environment(self, more: Mapping[str, str | None] | None) -> dict[str, str]:
        return {name: value for name, value in {**self.environment, **(more or {})}.items() if value is not None}

    def adopt(self, process: Process) -> Process:
        """It ends with this machine."""
        self._processes.append(process)
        return process

    def run(self, *arguments: str | Path, **how: Any) -> Finished:
        """Run `batchpipe ARGUMENTS...` to its end."""
        return self.start(*arguments, **how).finish()

    def json(self, *arguments: str | Path) -> Any:
        """The document that a command with --json prints."""
        done = self.run(*arguments, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def python(self, script: str, *arguments: str | Path) -> Any:
        """Run a script that prints one JSON document; returns it."""
        done = self.start_python("-c", script, *arguments).finish()
        assert done.code == 0, done.err
        return json.loads(done.out)

    def worker(self, *options: str, wait: bool = True, **how: Any) -> Process:
        """Start `batchpipe worker`; returns when it takes tasks."""
        process = self.start("worker", *options, **how)
        if wait:
            self.await_ready(process)
        return process

    @staticmethod
    def await_ready(worker: Process) -> None:
        until(lambda: " ready." in worker.err + worker.out or not worker.running, what="the worker is ready")
        assert worker.running, worker.err

    def close(self) -> None:
        """End what was started here, and what that has started."""
        for process in self._processes:
            if process.running:
                process.kill()
        for other in self.leftovers():
            with suppress(psutil.Error):
                other.kill()
                other.wait(5)

    def leftovers(self) -> list[psutil.Process]:
        """Living processes of this machine: its home is in their environment or arguments, or they work in it."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and self._is_ours(process):
                    found.append(process)
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        if process.cwd() in (str(self.folder), str(self.home / "redis")):
            return True  # a Redis writes its title over its environment, and a fork shows that of its parent
        if str(self.home / "redis") in process.cmdline():
            return True  # its supervisor, which is given no environment of ours
        return bool(process.environ().get("BATCHPIPE_HOME") == str(self.home))

    def private_redis(self) -> psutil.Process | None:
        return next((found for found in self.leftovers() if found.cwd() == str(self.home / "redis")), None)

    # -- inputs, jobs and what the provider knows of them ------------------------------------------------------------

    def input(self, rows: int = 12, name: str = "input.jsonl", **options: Any) -> Path:
        """A file of requests with the ids r0, r1, ..."""
        return self.write(name, request_lines(rows, **options))

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def submit(self, source: Path, *options: str | Path, output: str = "out") -> str:
        """Submit and return the job id."""
        done = self.run("submit", source, "-o", self.folder / output, *options)
        assert done.code == 0, done.err
        return done.out.strip()

    def batches(self, job: str) -> list[Batch]:
        """The provider's batches of a job, oldest first."""
        assert self.sandbox is not None
        return batches_of(self.sandbox, job)

    def billed(self, job: str) -> dict[str, int]:
        """How often each row of a job was paid for."""
        assert self.sandbox is not None
        return {row: times for (owner, row), times in self.sandbox.ledger.billed_by_job.items() if owner == job}

    def provider_lines(self, job: str) -> dict[str, bytes]:
        """The lines of the provider's output and error files of a job, by custom_id."""
        assert self.sandbox is not None
        lines: dict[str, bytes] = {}
        for batch in self.batches(job):
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                for line in self.sandbox.files.path(file_id).read_bytes().splitlines(keepends=True):
                    lines[json.loads(line)["custom_id"]] = line
        return lines


def batches_of(sandbox: Sandbox, job: str | None = None) -> list[Batch]:
    found: list[Batch] = []
    after, more = None, True
    while more:
        page, more = sandbox.batches.page(after, 100)
        found += page
        after = page[-1].id if page else None
    return [batch for batch in reversed(found) if job in (None, batch.job)]


def request(custom_id: str, *, url: str = CHAT, model: str = "gpt-4o-mini", **body: Any) -> dict[str, Any]:
    body = body or {"messages": [{"role": "user", "content": f"Tell me about {custom_id}."}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model, **body}}


def request_lines(rows: int, *, models: tuple[str, ...] = ("gpt-4o-mini",)) -> bytes:
    made = (request(f"r{number}", model=models[number % len(models)]) for number in range(rows))
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
