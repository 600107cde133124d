"""run and wait: follow jobs to their end, in the foreground."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from batchpipe.cli.common import (
    EXIT_CODES,
    INTERRUPTED,
    NOT_ENDED,
    Invocation,
    emit_json,
    emit_parts,
    input_of,
    number,
    open_client,
    say,
    say_error,
    settings,
)
from batchpipe.cli.interrupts import interrupt
from batchpipe.cli.options import Seconds, json_option, submit_options
from batchpipe.cli.progress import Display, make_display
from batchpipe.errors import BatchpipeError, PermanentError, SettingsError
from batchpipe.masking import one_line, without_secrets
from batchpipe.model.reasons import lasting, reason_words, reasons_view
from batchpipe.model.records import DEFAULT_ACCOUNT, JobRecord, ShardRecord
from batchpipe.model.views import SHOWN

if TYPE_CHECKING:
    from batchpipe.cli.model_check import ModelCheck
    from batchpipe.client.client import Client, Job
    from batchpipe.client.local_run import LocalRuns, LocalWorker
    from batchpipe.config.settings import Settings


@click.command("run")
@submit_options
@click.option("--again", is_flag=True, help="Start over instead of resuming.")
@click.option("--sandbox", is_flag=True, help="Run against a local server; needs no key, costs nothing.")
@json_option
def run_command(
    input: tuple[str, ...],
    account: str | None,
    again: bool,
    sandbox: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Submit and follow to the end, in the foreground; the same command again resumes.

    INPUT is a file or URL, several, or a pattern: JSONL of requests, or with --prompt a table (CSV, Parquet, JSONL of
    plain rows), compressed or not; or - for stdin (which never resumes). DIR gets output.jsonl, errors.jsonl and
    job.json. Ctrl-C stops following; the job goes on at the provider.
    """
    from batchpipe.client.local_run import resume_key
    from batchpipe.config.account import SANDBOX_ACCOUNT

    if sandbox and account not in (None, SANDBOX_ACCOUNT):
        raise click.UsageError("--sandbox brings its own account: leave out --account")
    options["account"] = SANDBOX_ACCOUNT if sandbox else account or DEFAULT_ACCOUNT
    source = input_of(input)
    if not sandbox:
        _check_account(options["account"])
    if options["key"] is None and input != ("-",):
        options["key"] = resume_key(input, options)
    client = open_client()
    if client.lift_pause(options["account"]):
        say(f"account {options['account']!r} is no longer paused")
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
    from batchpipe.client.local_run import was_never_sent
    from batchpipe.client.submission import new_run_queue

    old = client.find_by_key(options["key"]) if options["key"] else None
    replace = "1" if again else ""
    if old is not None and not again:
        if not was_never_sent(old):
            return _resume(client, old, as_json)
        replace = old.id
    queue = new_run_queue(client.settings)
    with local_runs(client).worker(queue, sandbox=sandbox) as worker:
        job = client.submit(source, queue=queue, own_queue=True, replace_job=replace, **options)
        if job.record.queue != queue:  # another process has just submitted the same
            return _resume(client, job, as_json)
        code = _follow(client, job, worker, as_json)
    _say_untold(client, job.id)
    return code


def local_runs(client: Client) -> LocalRuns:
    """The runs of this machine, with further processes started as this one was."""
    from batchpipe.client.local_run import LocalRuns
    from batchpipe.sandbox import Sandbox

    command = click.get_current_context().ensure_object(Invocation).command
    return LocalRuns(client, command, lambda folder: Sandbox(data_dir=folder))


def _resume(client: Client, job: Job, as_json: bool) -> int:
    try:
        return _resumed(client, job, as_json)
    except KeyboardInterrupt:  # before it was followed: its worker was only starting
        _say_goodbye(job.refresh(), client.settings, is_ours=True)
        return INTERRUPTED


def _resumed(client: Client, job: Job, as_json: bool) -> int:
    if not job.state.ended:
        say(f"resuming job {job.id}")
    else:
        say(f"job {job.id} has ended already; nothing is sent again (--again starts over)")
    if job.results_are_gone():
        raise PermanentError(
            f"job {job.id} ended {job.state.value}, but its results are gone; --again sends the rows again"
        )
    return _work_on(client, job, as_json, None)


def _work_on(client: Client, job: Job, as_json: bool, timeout: float | None) -> int:
    """Follow a job; one that belongs to a ``run`` is worked on here, unless another process does."""
    if job.record.closed or not job.record.input_here:
        return _follow(client, job, None, as_json, timeout)
    with local_runs(client).take_over(job) as worker:
        code = _follow(client, job, worker, as_json, timeout)
    if worker is not None:
        _say_untold(client, job.id)
    return code


def _say_untold(client: Client, job_id: str) -> None:
    """A line if a notification of the job is not delivered; call it when its worker has stopped, which sends them."""
    told = client.notifications()
    with suppress(BatchpipeError):  # the job has ended all the same
        for note in told.of_job(job_id)[:1] if told.counts().any else ():
            to, why = without_secrets(note.target)[:200], one_line(told.why(note))[:200]
            say(f"note: the notification to {to} is not delivered: {why}; see batchpipe notifications")


def _follow(client: Client, job: Job, worker: LocalWorker | None, as_json: bool, timeout: float | None = None) -> int:
    with _terminated_is_interrupted(), make_display() as display:
        try:
            job = client.follow(job.id, timeout=timeout, tick=_Tick(client, display, worker))
        except TimeoutError as error:
            display.close()
            say(str(error))
            return NOT_ENDED
        except KeyboardInterrupt:
            display.close()
            _say_goodbye(job.refresh(), client.settings, is_ours=worker is not None)
            return INTERRUPTED
    if worker is not None:
        worker.job_is_done = job.record.closed
    if as_json:
        emit_parts(job.iter_json())
    _say_end(job)
    return EXIT_CODES[job.state]


#: The fields of shards that a progress display shows.
_SEEN = (*SHOWN, "calls", "next_at", "parked", "file_id", "backoff")


class _Tick:
    """Called each time the job is read: keep its worker alive, show the progress."""

    def __init__(self, client: Client, display: Display, worker: LocalWorker | None) -> None:
        from batchpipe.client.local_run import ApiWatch

        self._client, self._display, self._worker = client, display, worker
        self._api = ApiWatch()
        self._models: ModelCheck | None = None
        self._watch = client.watch(lambda line: say(f"Warning: {line}"))

    def __call__(self, job: Job) -> None:
        from batchpipe.client.local_run import raise_if_refused

        if self._worker is not None:
            self._worker.keep_going()
        else:
            self._watch(job.record)
        if self._display.wants_update(job.record):
            moment, shards = self._client.moment_of(job), list(job.shards(_SEEN))
            if self._worker is not None:
                self._api.check(job.record, shards)
                self._check_models(job.record, shards)
                if moment.pause is not None:
                    raise_if_refused(job.record, shards, moment.pause)
            self._display.update(job.record, shards, moment)

    def _check_models(self, job: JobRecord, shards: list[ShardRecord]) -> None:
        """Once a batch is made, so that nothing waits for the answer."""
        from batchpipe.cli.model_check import ModelCheck, listed_models

        if job.state.ended or not any(shard.batch_id for shard in shards):
            return
        self._models = self._models or ModelCheck(partial(listed_models, self._client.settings, job.account))
        for line in self._models.warnings(shard.model for shard in shards):
            say(f"Warning: {line}; if its rows are wrong: batchpipe cancel {job.id}")


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say_goodbye(job: Job, chosen: Settings, *, is_ours: bool) -> None:
    """``is_ours``: its worker, which may have the sandbox, stops now."""
    from batchpipe.config.account import SANDBOX_ACCOUNT

    running = any(shard.batch_id for shard in job.shards(("batch_id",)))
    if not running:
        what = "is kept, nothing runs yet"
    elif is_ours and job.record.account == SANDBOX_ACCOUNT:
        what = "rests: its sandbox stops with this command, and goes on when it is followed again"
    elif is_ours and chosen.sandbox and job.record.account == DEFAULT_ACCOUNT:
        what = "rests when no worker runs its sandbox, and goes on when it is followed again"
    else:
        what = "goes on at the provider"
    say(f"stopped following; job {job.id} {what}")
    say(f"  follow it    batchpipe wait {job.id}   (or the same command again)")
    say(f"  cancel it    batchpipe cancel {job.id}")


def _say_end(job: Job) -> None:
    from batchpipe.model.views import ended_early

    record = job.record
    took = (record.ended_at or record.created_at) - record.created_at
    counts = f"{number(record.failed)} failed, {number(record.missing)} missing"
    rows = f"{number(record.ok)} of {number(record.total)} rows ok, {counts}"
    say(f"job {job.id} {job.state.value}: {rows}, in {took:.1f} s")
    if reasons := reason_words(reasons_view(record.reasons)):
        say(f"not ok: {reasons}")
    if early := ended_early(record.incomplete):
        say(f"note: {early}")
    if job.error is not None:
        say_error(job.error.message if not record.shards else " ".join(job.error.message.split()))
    if not record.results:
        return
    place = job.results_folder(check=False).url
    say(f"results: {place}")
    if record.failed or record.missing:
        say(f"what failed: {place.rstrip('/')}/errors.jsonl; {_what_helps(record)}")


def _what_helps(job: JobRecord) -> str:
    """Of rows that are wrong themselves, a retry would only fail again."""
    same = lasting(job.reasons)
    if same >= (job.failed or 0) + (job.missing or 0):
        return (
            "these rows fail again as they are: correct them in the input and submit that (or, once the provider "
            f"takes them as they are: batchpipe retry {job.id})"
        )
    also = f" ({number(same)} of them fail again as they are: correct those in the input)" if same else ""
    return f"retry these rows: batchpipe retry {job.id}{also}"


@click.command("wait")
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.option("--timeout", type=Seconds(), help="Stop waiting after so long.")
@json_option
def wait_command(job_ids: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait until jobs have ended; a job of `run` is worked on here. Exits with the highest code of all."""
    client = open_client()
    jobs = [client.find_job(job_id) for job_id in job_ids]
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
