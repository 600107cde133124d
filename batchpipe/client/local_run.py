"""A ``run`` on this machine: the worker process for its queue, the sandbox that it may need, and how it is resumed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from batchpipe.client.client import Client, Job
from batchpipe.client.options import RECIPE_NAMES
from batchpipe.client.recipes import read_file
from batchpipe.client.submission import absolute
from batchpipe.config.account import SANDBOX_ACCOUNT
from batchpipe.config.loading import child_environment
from batchpipe.errors import NO_API, NO_QUOTA, NO_ROUTE, BatchpipeError, SettingsError
from batchpipe.model.records import DEFAULT_ENDPOINT, JobRecord, Problem, ShardRecord, Stage, State
from batchpipe.model.stats import Pause
from batchpipe.storage import Folder, expanded, input_info
from batchpipe.storage.local import hold_lock, open_log
from batchpipe.tasks.publishing import forget_queue

#: Deaths in a row, each within so many seconds of its start, after which a worker is not started again.
MAX_QUICK_DEATHS, QUICK_SECONDS = 3, 10.0
#: How long a worker has to hand back its work before it is killed.
STOP_SECONDS = 8.0
#: After so many answers in a row that are a page, and no answer of an API, there is none.
PAGES_BELIEVED = 3
#: How long ``carry_out_cancel`` tries to stop the provider's batches.
CANCEL_SECONDS = 60.0


class LocalWorker:
    """A worker process for one queue: started, kept alive, and stopped with this process, however that ends.

    It reads our pipe: when we vanish, the pipe closes and it stops. Its log goes to a file.
    """

    def __init__(self, client: Client, queue: str, command: Sequence[str], log: Path, extra: dict[str, str]) -> None:
        """``command``: how ``batchpipe`` is called here. ``extra``: settings beside those of the client."""
        self.log = log
        self.job_is_done = False  #: set by the code that follows the job: nothing of it is needed any more
        self._client = client
        self._command = [*command, "worker", "--queues", queue, "--with-parent"]
        self._environment = child_environment(client.settings, **extra)
        self._quick_deaths = 0
        self._swept = time.monotonic()  # a sweep right after submit would find nothing
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._started = time.monotonic()
        with open_log(self.log) as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    def keep_going(self) -> None:
        """To be called again and again: starts the worker again if it died, and sweeps when it is time.

        Raises BatchpipeError if it dies again and again.
        """
        self._ensure()
        if time.monotonic() - self._swept >= self._client.settings.sweep_seconds:
            self._swept = time.monotonic()
            self._client.sweep(listing=False)  # its worker reads the lists

    def _ensure(self) -> None:
        if self._process.poll() is None:
            return
        quick = time.monotonic() - self._started < QUICK_SECONDS
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
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
        if self.job_is_done:
            with suppress(BatchpipeError):  # what cannot be sent now is sent by a later command
                self._client.notifications().deliver()


class Sandbox(Protocol):
    """A local server that stands in for the provider."""

    @property
    def base_url(self) -> str: ...


class LocalRuns:
    """The runs of this machine: each has a queue of its own, a lock, a log, and perhaps a sandbox."""

    def __init__(
        self,
        client: Client,
        command: Sequence[str],
        open_sandbox: Callable[[Path], AbstractContextManager[Sandbox]],
    ) -> None:
        """``command``: how ``batchpipe`` is called here. ``open_sandbox`` is given the folder for its data."""
        self._client, self._command, self._open_sandbox = client, command, open_sandbox
        self._home = client.settings.home

    @contextmanager
    def worker(self, queue: str, *, sandbox: bool) -> Iterator[LocalWorker]:
        """Work on the queue of a new run."""
        with self._lock(queue, wait=True), self._running(queue, sandbox=sandbox) as worker:
            yield worker

    @contextmanager
    def take_over(self, job: Job) -> Iterator[LocalWorker | None]:
        """Go on with the job of a run; None if another process works on it already."""
        with self._worker_of(job) as worker:
            if worker is not None:
                self._client.lift_pause(job.record.account)  # its cause is corrected, or shows again at once
                self._client.republish(job.id)
            yield worker

    def carry_out_cancel(self, job: Job) -> None:
        """Tell the provider to stop the batches of a run that has lost its worker; ``wait`` collects what finished."""
        with self._worker_of(job) as worker:
            if worker is None:
                return  # the run itself is still there and does it
            self._client.republish(job.id)
            self._client.sweep(listing=False)
            ends = time.monotonic() + CANCEL_SECONDS
            while time.monotonic() < ends and not _is_winding_down(job.refresh()):
                worker.keep_going()  # its sweeps publish the shards of a large job again page by page
                time.sleep(0.2)
            worker.job_is_done = job.record.closed

    @contextmanager
    def _worker_of(self, job: Job) -> Iterator[LocalWorker | None]:
        """With the lock in our hands no other process works on the job: work that was under way is lost."""
        queue, sandbox = job.record.queue, job.record.account == SANDBOX_ACCOUNT
        with self._lock(queue, wait=False) as is_ours:
            if not is_ours:
                yield None
                return
            with self._running(queue, sandbox=sandbox) as worker:
                yield worker

    def _lock(self, queue: str, *, wait: bool) -> AbstractContextManager[bool]:
        return hold_lock(self._home / "runs" / f"{_run_id(queue)}.lock", wait=wait)

    @contextmanager
    def _running(self, queue: str, *, sandbox: bool) -> Iterator[LocalWorker]:
        run_id = _run_id(queue)
        with ExitStack() as running:
            extra = running.enter_context(self._sandbox(run_id)) if sandbox else {}
            worker = LocalWorker(self._client, queue, self._command, self._home / "logs" / f"{run_id}.log", extra)
            running.callback(worker.stop)
            yield worker
        if worker.job_is_done:
            self._clean_up(queue)

    @contextmanager
    def _sandbox(self, run_id: str) -> Iterator[dict[str, str]]:
        """A sandbox in this process, and the settings with which a worker finds it."""
        settings = self._client.settings
        pause = {"POLL_MIN_SECONDS": f"{min(1.0, settings.poll_max_seconds):g}"}
        with self._open_sandbox(self._home / "sandbox" / run_id) as server:
            account = f"ACCOUNTS__{SANDBOX_ACCOUNT.upper()}__"
            yield {
                f"{account}BASE_URL": server.base_url,
                f"{account}API_KEY": "sandbox",
                f"{account}SANDBOX": "true",
                f"{account}LOOKS_PER_SECOND": "100",
                **({} if "poll_min_seconds" in settings.model_fields_set else pause),
            }

    def _clean_up(self, queue: str) -> None:
        """Remove everything of a finished run but its log."""
        forget_queue(queue)
        home = Folder(str(self._home), private=True)
        home.remove(f"sandbox/{_run_id(queue)}")
        home.remove(f"runs/{_run_id(queue)}.lock")


def _run_id(queue: str) -> str:
    return queue.rpartition(".")[2]


def _is_winding_down(job: Job) -> bool:
    if job.record.closed:
        return True
    shards = list(job.shards(("cancel_sent",)))
    stopped = all(shard.cancel_sent or shard.stage in (Stage.ENDED, Stage.COLLECTED) for shard in shards)
    nearly_done = all(shard.stage == Stage.COLLECTED for shard in shards)  # only the merge is left: worth waiting for
    return bool(shards) and stopped and job.state is State.CANCELLING and not nearly_done


def resume_key(sources: Sequence[str], options: Mapping[str, Any]) -> str:
    """The key of a run: the same input (places, sizes, times), options and output mean the same job.

    But for the priority, which changes no result. Options that older versions did not have count where they are given.
    """
    added = (*RECIPE_NAMES, "format", "excel", "endpoint")
    told = {name: value for name, value in options.items() if name != "priority" and (name not in added or value)}
    told.setdefault("endpoint", DEFAULT_ENDPOINT)
    if options.get("answer") is not None:  # the file may be another one under the same name
        told["answer"] = read_file(options["answer"], "answer")
    infos = [part for place in expanded(sources) for part in (absolute(place), *input_info(place))]
    parts = [*infos, {**told, "output": absolute(options["output"])}]
    return "run-" + hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def was_never_sent(job: Job) -> bool:
    """Whether it failed before anything was sent: there is nothing to resume."""
    return job.state is State.FAILED and job.record.shards == 0


def raise_if_refused(job: JobRecord, shards: Sequence[ShardRecord], pause: Pause) -> None:
    """Raises SettingsError if the provider refuses the account, and nothing of the job is there to be fetched.

    Only a person can correct that, and one is at this terminal. A quota may be raised elsewhere, so that is waited for.
    """
    at_provider = any(_may_be_there(shard) for shard in shards)
    if pause.code == NO_QUOTA or at_provider or job.state.ended:
        return
    also = "OPENAI_API_KEY or " if job.account == "default" else ""
    raise SettingsError(
        f"the provider refuses account {job.account!r} ({pause.code}): {pause.message}; check its key "
        f"({also}BATCHPIPE_ACCOUNTS__{job.account.upper()}__API_KEY), organization and rights. "
        f"Job {job.id} is kept: the same command goes on with it"
    )


class ApiWatch:
    """Whether there is an API at an account's address at all, as far as the shards of a run tell."""

    def __init__(self) -> None:
        self._before: dict[int, int] | None = None

    def check(self, job: JobRecord, shards: Sequence[ShardRecord]) -> None:
        """Raises SettingsError if calls are answered with 404 by a server that knows none of our routes, and the
        provider has never had anything of the job. Only what has come since the first call of this counts: what is
        recorded from before may be corrected by now. A page may be that of a proxy, for a moment: it is believed the
        third time.
        """
        if self._before is None:
            self._before = {shard.index: shard.backoff for shard in shards}
        if job.state.ended or any(shard.file_id or shard.batch_id or shard.calls for shard in shards):
            return
        for shard in shards:
            fresh = shard.backoff - self._before.get(shard.index, 0)
            if shard.trouble is not None and _is_no_api(shard.trouble, fresh):
                raise _no_api(job, shard.trouble)


def _is_no_api(trouble: Problem, times: int) -> bool:
    return times >= (PAGES_BELIEVED if trouble.code == NO_ROUTE else 1) and trouble.code in (NO_API, NO_ROUTE)


def _no_api(job: JobRecord, trouble: Problem) -> SettingsError:
    also = "OPENAI_BASE_URL or " if job.account == "default" else ""
    said = trouble.message.partition(" (tried again")[0]
    return SettingsError(
        f"{said}{'' if said.endswith('?') else '.'} Correct the address of account {job.account!r} "
        f"({also}BATCHPIPE_ACCOUNTS__{job.account.upper()}__BASE_URL). "
        f"Job {job.id} is kept: the same command goes on with it"
    )


def _may_be_there(shard: ShardRecord) -> bool:
    """Whether the provider may have a batch of a shard that is not collected; True for a shard that cannot be read."""
    if shard.stage == Stage.COLLECTED:
        return False
    return bool(shard.batch_id or shard.calls) or shard.stage == "unreadable"
