"""The worker process for the queue of a ``run``, and the sandbox that it may need."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from batchpipe.cli.common import Invocation
from batchpipe.errors import BatchpipeError

if TYPE_CHECKING:
    from batchpipe.config.settings import Settings

#: Deaths in a row, each within seconds of its start, after which a worker is not started again.
MAX_QUICK_DEATHS = 3
STOP_SECONDS = 8.0


class OwnWorker:
    """A worker process for one queue: started, kept alive, and stopped with this process, however that ends.

    It reads our pipe: when we vanish, the pipe closes and it stops. Its log goes to a file.
    """

    def __init__(self, settings: Settings, queue: str, log: Path, extra_environment: dict[str, str]) -> None:
        self._settings, self._queue, self.log = settings, queue, log
        self._command = click.get_current_context().ensure_object(Invocation).command
        self._extra = extra_environment
        self._quick_deaths = 0
        self.job_is_done = False  #: set by the code that follows the job: nothing of it is needed any more
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        from batchpipe.config.loading import child_environment

        self._started = time.monotonic()
        with self._open_log() as log:
            return subprocess.Popen(
                [*self._command, "worker", "--queues", self._queue, "--with-parent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(self._settings, **self._extra),
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    def _open_log(self) -> IO[bytes]:
        from batchpipe.storage.local import open_log

        return open_log(self.log)

    def ensure(self) -> None:
        """Start it again if it died. Raises BatchpipeError if it dies again and again."""
        if self._process.poll() is None:
            return
        self._quick_deaths = self._quick_deaths + 1 if time.monotonic() - self._started < 10 else 0
        if self._quick_deaths >= MAX_QUICK_DEATHS:
            raise BatchpipeError(f"the worker keeps dying; its log is {self.log}")
        self._process = self._start()

    def stop(self) -> None:
        """Let it hand back its work; after a few seconds it is killed: its lease expires and other workers go on."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


@contextmanager
def own_worker(
    settings: Settings, queue: str, *, job_key: str, sandbox: bool, only_if_free: bool = False
) -> Iterator[OwnWorker | None]:
    """Work on a run's queue here. ``only_if_free``: None if another process does so already."""
    from batchpipe.storage.local import hold_lock

    with ExitStack() as stack:
        if not stack.enter_context(hold_lock(settings.home / "runs" / f"{job_key}.lock", wait=not only_if_free)):
            yield None
            return
        folder = settings.home / "sandbox" / job_key
        with ExitStack() as running:
            extra = running.enter_context(_sandbox(settings, folder)) if sandbox else {}
            worker = OwnWorker(settings, queue, settings.home / "logs" / f"{job_key}.log", extra)
            running.callback(worker.stop)
            yield worker
        if worker.job_is_done:
            _tidy(settings, queue, job_key)


def _tidy(settings: Settings, queue: str, job_key: str) -> None:
    """Remove everything of a finished run but its log."""
    from batchpipe.storage import Folder
    from batchpipe.tasks.publishing import forget_queue

    forget_queue(queue)
    home = Folder(str(settings.home), private=True)
    home.remove(f"sandbox/{job_key}")
    home.remove(f"runs/{job_key}.lock")


@contextmanager
def _sandbox(settings: Settings, folder: Path) -> Iterator[dict[str, str]]:
    """A sandbox server in this process, and the settings with which a worker finds it."""
    from batchpipe.config.account import SANDBOX_ACCOUNT
    from batchpipe.sandbox import Sandbox

    with Sandbox(data_dir=folder) as server:
        account = f"ACCOUNTS__{SANDBOX_ACCOUNT.upper()}__"
        yield {
            f"{account}BASE_URL": server.base_url,
            f"{account}API_KEY": "sandbox",
            f"{account}SANDBOX": "true",
            f"{account}LOOKS_PER_SECOND": "100",
            **({} if "poll_min_seconds" in settings.model_fields_set else {"POLL_MIN_SECONDS": "1"}),
        }
