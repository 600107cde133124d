"""run and wait: follow jobs to their end, in the foreground."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from batchpipe.cli.common import (
    EXIT_CODES,
    INTERRUPTED,
    NOT_ENDED,
    Seconds,
    emit_json,
    emit_parts,
    input_of,
    json_option,
    number,
    open_client,
    say,
    settings,
    submit_options,
)
from batchpipe.cli.foreground import OwnWorker, own_worker
from batchpipe.cli.progress import Display, make_display
from batchpipe.errors import PermanentError, SettingsError
from batchpipe.model.records import JobRecord, ShardRecord, Stage, State

#: How long ``cancel`` itself tries to stop the provider's batches.
CANCEL_SECONDS = 60.0

if TYPE_CHECKING:
    from batchpipe.client.client import Client, Job
    from batchpipe.store import Pause


@click.command("run")
@submit_options
@click.option("--again", is_flag=True, help="Start over instead of resuming.")
@click.option("--sandbox", is_flag=True, help="Run against a local server; needs no key, costs nothing.")
@json_option
def run_command(
    input: str,
    metadata: Any,
    extra: Any,
    account: str | None,
    again: bool,
    sandbox: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Submit and follow to the end, in the foreground; the same command again resumes.

    INPUT is a JSONL file of requests, a URL to one, or - for stdin (which never resumes). DIR gets output.jsonl,
    errors.jsonl and job.json. Ctrl-C stops following; the job goes on at the provider.
    """
    from batchpipe.config.settings import SANDBOX_ACCOUNT

    if sandbox and account not in (None, SANDBOX_ACCOUNT):
        raise click.UsageError("--sandbox brings its own account: leave --account away")
    options |= {"account": SANDBOX_ACCOUNT if sandbox else account or "default"}
    options |= {"metadata": dict(metadata), "extra": dict(extra)}
    source = input_of(input)
    if not sandbox:
        _check_account(options["account"])
    if options["key"] is None and input != "-":
        options["key"] = resume_key(input, options)
    client = open_client()
    if client.store.accounts.resume(options["account"]):  # the cause is corrected, or shows again at once
        say(f"the pause of account {options['account']!r} is lifted")
    return _run(client, source, options, again=again, sandbox=sandbox, as_json=as_json)


def _check_account(name: str) -> None:
    """Reports a missing key now, not in the worker's log. Raises SettingsError."""
    try:
        settings().account(name)
    except SettingsError as error:
        if error.code != "no_api_key":
            raise
        raise SettingsError(f"{error}; with --sandbox no key is needed", code=error.code) from None


def _run(client: Client, source: Any, options: dict[str, Any], *, again: bool, sandbox: bool, as_json: bool) -> int:
    old = _known(client, options["key"])
    replace = "1" if again else ""
    if old is not None and not again:
        if not _never_sent(old.record):
            return _resume(client, old, as_json)
        replace = old.id  # it failed before anything was sent: there is nothing to resume
    from batchpipe.model.records import new_job_id

    run_id = new_job_id().removeprefix("job_")
    queue = f"{client.settings.queue}.run.{run_id}"
    with own_worker(client.settings, queue, job_key=run_id, sandbox=sandbox) as worker:
        job = client.submit(source, queue=queue, own_queue=True, again=replace, **options)
        if job.record.queue != queue:  # another process has just submitted the same
            return _resume(client, job, as_json)
        return _follow(client, job, worker, as_json)


def _known(client: Client, key: str | None) -> Job | None:
    job_id = client.store.jobs.id_of_key(key) if key else None
    return client.get_job(job_id) if job_id else None


def _never_sent(job: JobRecord) -> bool:
    return job.state is State.FAILED and job.shards == 0


def _resume(client: Client, job: Job, as_json: bool) -> int:
    if not job.state.ended:
        say(f"resuming job {job.id}")
    else:
        say(f"job {job.id} has ended already; nothing is sent again (--again starts over)")
    if _results_are_gone(job):
        raise PermanentError(
            f"job {job.id} ended {job.state.value}, but its results are gone; --again sends the rows again"
        )
    return _work_on(client, job, as_json, None)


def _results_are_gone(job: Job) -> bool:
    from batchpipe.pipeline.manifest import results_place

    if not job.record.closed or job.to_dict(shards=False)["output_file"] is None:
        return False
    try:
        return not results_place(job.record).exists("output.jsonl")
    except PermanentError:
        return True


def _work_on(client: Client, job: Job, as_json: bool, timeout: float | None) -> int:
    """Follow a job; one that belongs to a ``run`` is worked on here, unless another process does."""
    if job.record.closed or not job.record.input_here:
        return _follow(client, job, None, as_json, timeout)
    from batchpipe.config.settings import SANDBOX_ACCOUNT

    run_id = job.record.queue.rpartition(".")[2]
    sandbox = job.record.account == SANDBOX_ACCOUNT
    with own_worker(client.settings, job.record.queue, job_key=run_id, sandbox=sandbox, only_if_free=True) as worker:
        if worker is not None:  # we have its lock, so no other process works on it: work that was under way is lost
            client.store.accounts.resume(job.record.account)  # as with run: corrected, or refused again at once
            client.wake(job.id)
        return _follow(client, job, worker, as_json, timeout)


def _follow(client: Client, job: Job, worker: OwnWorker | None, as_json: bool, timeout: float | None = None) -> int:
    with _terminated_is_interrupted(), make_display() as display:
        try:
            record = client.follow(job.id, timeout=timeout, tick=_Tick(client, display, worker))
        except TimeoutError as error:
            display.close()
            say(str(error))
            return NOT_ENDED
        except KeyboardInterrupt:
            display.close()
            _say_goodbye(client, job)
            return INTERRUPTED
    if worker is not None:
        worker.job_is_done = record.closed
    job = client.get_job(job.id)
    if as_json:
        emit_parts(job.iter_json())
    _say_end(record)
    return EXIT_CODES[record.state]


def carry_out_cancel(client: Client, job: Job) -> None:
    """Tell the provider to stop the batches of a ``run`` without a worker; ``wait`` collects what finished."""
    from batchpipe.config.settings import SANDBOX_ACCOUNT

    queue, sandbox = job.record.queue, job.record.account == SANDBOX_ACCOUNT
    run_id = queue.rpartition(".")[2]
    with own_worker(client.settings, queue, job_key=run_id, sandbox=sandbox, only_if_free=True) as worker:
        if worker is None:
            return  # the run itself is still there and does it
        client.wake(job.id)
        ends, swept = time.monotonic() + CANCEL_SECONDS, 0.0
        while time.monotonic() < ends and not _is_winding_down(client, job):
            worker.ensure()
            if time.monotonic() - swept >= client.settings.sweep_seconds:  # wakes shards of a large job page by page
                swept = time.monotonic()
                client.sweep(listing=False)
            time.sleep(0.2)
        worker.job_is_done = job.record.closed


def _is_winding_down(client: Client, job: Job) -> bool:
    record = job.refresh().record
    shards = list(client.store.shards.of_job(record, fields=("cancel_sent",), bad="show"))
    stopped = all(shard.cancel_sent or shard.stage in (Stage.ENDED, Stage.COLLECTED) for shard in shards)
    return record.closed or (bool(shards) and stopped and record.state is State.CANCELLING and not _nearly_done(shards))


def _nearly_done(shards: list[ShardRecord]) -> bool:
    """Only the merge is left: that is worth waiting for."""
    return all(shard.stage == Stage.COLLECTED for shard in shards)


#: The fields of shards that a progress display shows.
_SEEN = ("round", "rows", "status", "counts", "resend", "trouble", "batch_id", "calls", "ok", "failed", "missing")


class _Tick:
    """Called each time the job is read: sweep, keep the worker alive, show the progress."""

    def __init__(self, client: Client, display: Display, worker: OwnWorker | None) -> None:
        from batchpipe.client.listeners import Watch

        self._client, self._display, self._worker = client, display, worker
        self._watch = Watch(client.store, client.settings, lambda line: say(f"Warning: {line}"))
        self._swept = time.monotonic()  # a sweep right after submit would find nothing

    def __call__(self, job: JobRecord) -> None:
        if self._worker is not None:
            self._worker.ensure()
            if time.monotonic() - self._swept >= self._client.settings.sweep_seconds:
                self._swept = time.monotonic()
                self._client.sweep(listing=False)  # its worker reads the lists
        else:
            self._watch(job)
        if self._display.wants_update(job):
            pause, shards = self._client.store.accounts.pause_of(job.account), self._shards(job)
            if self._worker is not None and pause is not None:
                _raise_if_refused(job, shards, pause)
            self._display.update(job, shards, pause)

    def _shards(self, job: JobRecord) -> list[ShardRecord]:
        return list(self._client.store.shards.of_job(job, fields=_SEEN, bad="show"))


def _raise_if_refused(job: JobRecord, shards: list[ShardRecord], pause: Pause) -> None:
    """Raises SettingsError if the provider refuses the account, and nothing of the job is there to be fetched.

    Only a person can correct that, and one is at this terminal. A quota may be raised elsewhere, so that is waited for.
    """
    from batchpipe.pipeline.runner import NO_QUOTA

    at_provider = any(_may_be_there(shard) for shard in shards)
    if pause.code == NO_QUOTA or at_provider or job.state.ended:
        return
    also = "OPENAI_API_KEY or " if job.account == "default" else ""
    raise SettingsError(
        f"the provider refuses account {job.account!r} ({pause.code}): {pause.message}; check its key "
        f"({also}BATCHPIPE_ACCOUNTS__{job.account.upper()}__API_KEY), organization and rights. "
        f"Job {job.id} is kept: the same command goes on with it"
    )


def _may_be_there(shard: ShardRecord) -> bool:
    """Whether the provider may have a batch of a shard that is not collected; True for a shard that cannot be read."""
    if shard.stage == Stage.COLLECTED:
        return False
    return bool(shard.batch_id or shard.calls) or shard.stage == "unreadable"


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_goodbye(client: Client, job: Job) -> None:
    running = any(
        shard.batch_id for shard in client.store.shards.of_job(job.refresh().record, fields=("batch_id",), bad="show")
    )
    say(f"stopped following; job {job.id} " + ("goes on at the provider" if running else "is kept, nothing runs yet"))
    say(f"  follow it    batchpipe wait {job.id}   (or the same command again)")
    say(f"  cancel it    batchpipe cancel {job.id}")


def _say_end(job: JobRecord) -> None:
    from batchpipe.model.views import ended_early
    from batchpipe.pipeline.manifest import results_place

    took = (job.ended_at or job.created_at) - job.created_at
    rows = (
        f"{number(job.ok)} of {number(job.total)} rows ok, {number(job.failed)} failed, {number(job.missing)} missing"
    )
    say(f"job {job.id} {job.state.value}: {rows}, in {took:.1f} s")
    if early := ended_early(job.incomplete):
        say(f"note: {early}")
    if job.error is not None:
        say(f"Error: {job.error.message}")
    if not job.results:
        return
    place = results_place(job).url
    say(f"results: {place}")
    if job.failed or job.missing:
        say(f"why not: {place.rstrip('/')}/errors.jsonl; the same rows again: batchpipe retry {job.id}")


def resume_key(source: str, options: dict[str, Any]) -> str:
    """The key of a run: the same input (place, size, time), options and output mean the same job."""
    from batchpipe.client.submission import absolute
    from batchpipe.storage import input_info

    parts = [absolute(source), *input_info(source), {**options, "output": absolute(options["output"])}]
    return "run-" + hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@click.command("wait")
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.option("--timeout", type=Seconds(), help="Stop waiting after so long.")
@json_option
def wait_command(job_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait until jobs have ended; a job of `run` is worked on here. Exits with the highest code of all."""
    client = open_client()
    jobs = [client.get_job(job_id) for job_id in job_ids]
    ends = time.monotonic() + timeout if timeout is not None else None
    codes: list[int] = []
    for job in jobs:
        left = max(ends - time.monotonic(), 0.0) if ends is not None else None
        codes.append(_work_on(client, job, False, left))
        if codes[-1] == INTERRUPTED:
            return INTERRUPTED
    if as_json:
        views = [job.refresh().to_dict() for job in jobs]
        emit_json(views[0] if len(views) == 1 else views)
    return max(codes)
