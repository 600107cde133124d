"""submit, get_job, list_jobs, cancel: what a program calls, from any process."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from batchpipe.client.job import Job
from batchpipe.client.listeners import warn_of_submit
from batchpipe.client.submission import HeldSpool, Input, as_text, drop_spool, held_back, new_record, with_input
from batchpipe.client.waiting import follow
from batchpipe.config.settings import SANDBOX_ACCOUNT, Settings, bare_environment, current_settings, install_settings
from batchpipe.errors import InvalidInput, JobNotFound, OutputInUse, PermanentError, SettingsError, StoreUnavailable
from batchpipe.local_redis import acquire
from batchpipe.masking import without_secrets
from batchpipe.model.records import JOB, JobRecord, State, new_job_id
from batchpipe.model.refusals import LANDABLE
from batchpipe.pipeline.manifest import basics, note_workspace, prune_workspaces, results_place, workspace_of
from batchpipe.pipeline.results import INDEX, BatchResult, Outcome, iter_failed_requests
from batchpipe.pipeline.runner import Message
from batchpipe.pipeline.sweep import sweep
from batchpipe.pipeline.waking import WOKEN_AT_ONCE, Resumed, resume_account, wake_first, wake_job
from batchpipe.recover import Report, recover
from batchpipe.storage import Folder
from batchpipe.store import Store
from batchpipe.tasks import chain as tasks

#: Private Redis servers of this process that lose everything when they stop: a second client must know it, too.
_FORGETFUL: set[str] = set()


class Client:
    """The client of one Redis. Programs use the functions of this module; commands make one with their own settings."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Without REDIS_URL the private Redis is found or started, for as long as this process lives.

        Raises SettingsError.
        """
        in_use = None if settings is not None else current_settings()
        settings = settings or in_use
        assert settings is not None
        if settings.redis_url is None:
            handle = acquire(settings.home, environment=bare_environment())
            atexit.register(handle.close)
            settings = settings.with_redis(handle.server.url)
            if not handle.server.durable:
                _FORGETFUL.add(handle.server.url)
        self.durable = settings.redis_address() not in _FORGETFUL
        if settings is not in_use:
            install_settings(settings)
        self.settings = settings

    @property
    def store(self) -> Store:
        return tasks.runtime(self.settings).store

    # -- submitting ------------------------------------------------------------------------------------------------

    def submit(
        self,
        input: Input,
        *,
        output: str | Path | None = None,
        endpoint: str = "/v1/chat/completions",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        account: str = "default",
        name: str | None = None,
        key: str | None = None,
        tags: Mapping[str, Any] | None = None,
        queue: str | None = None,
        on_done: Any = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        attempts: int | None = None,
        own_queue: bool = False,
        again: str = "",
        notify_sites: Sequence[str] = (),
        may_come_later: bool = False,
    ) -> Job:
        """Record a job and enqueue it. See ``batchpipe.submit``; the last four options are for commands, retries and
        schedules.

        ``notify_sites``: names of the listeners to notify of its end, instead of those of this process.
        ``may_come_later``: wait for an input that is not there yet.
        """
        job_id, key = new_job_id(), as_text(key, "key")
        if key is not None and not again and (first := self.store.jobs.id_of_key(key)) is not None:
            return self.get_job(first)
        if not self.durable and not self.settings.is_sandbox(account):
            raise SettingsError(
                "no redis-server was found, and the built-in stand-in forgets what was paid for when it stops: install "
                "redis-server (or valkey), or set BATCHPIPE_REDIS_URL; a sandbox needs neither: BATCHPIPE_SANDBOX=true"
            )
        tasks.check_not_eager()  # nor with a broker URL that cannot be used: raised before anything is recorded
        record = new_record(
            self.settings,
            job_id,
            output=output,
            name=name,
            account=account,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            extra=extra,
            tags=tags,
            key=key,
            queue=queue,
            input_here=own_queue,
            max_rows=max_rows,
            max_bytes=max_bytes,
            attempts=attempts,
            on_done=on_done,
            notify_sites=list(notify_sites),
        )
        record = with_input(record, input, self.settings, may_come_later=may_come_later)
        if not again and self._record_later(record):
            return Job(record, self, held=True)
        return self._record(record, again)

    def _record_later(self, record: JobRecord) -> bool:
        """If a framework's transaction is open, let its commit record the job. Returns whether one is open."""
        spool = HeldSpool(record)

        def commit() -> None:
            spool.hand_over()
            self._record(record, "", alias=True)

        if held_back(commit):
            return True
        spool.hand_over()
        return False

    def _record(self, record: JobRecord, again: str, *, alias: bool = False) -> Job:
        job_id, created = self._record_or_drop(record, again, alias)
        if created:
            note_workspace(self.settings, record, record=basics(record))
            turns = tasks.runtime(self.settings).jobs
            prune_workspaces(self.settings, self.store.jobs.closed, record.created_at or time.time())
            turns.log(job_id, [("submitted", {"input": without_secrets(record.input), "queue": record.queue})])
            turns.publish(Message(job_id, JOB, record.epoch, State.PENDING, record.task_ids, record.queue))
        else:
            drop_spool(record)
        return self.get_job(job_id)

    def _record_or_drop(self, record: JobRecord, again: str, alias: bool) -> tuple[str, bool]:
        """Record the job; if that fails, what was copied for it is removed."""
        if record.spooled:
            try:
                self.store.now()  # Redis is away, so nothing is recorded yet
            except BaseException:
                drop_spool(record)
                raise
        try:
            return self.store.jobs.submit(record, replace_job=again, alias=alias)
        except PermanentError:
            drop_spool(record)
            raise
        except StoreUnavailable:  # it may have been recorded all the same
            with suppress(StoreUnavailable):
                if record.spooled and self.store.jobs.give_up(record.id):
                    drop_spool(record)
            raise

    def retry(
        self,
        job_id: str,
        *,
        output: str | Path | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
    ) -> Job:
        """Send the rows of an ended job that are not ok as a new job. ``max_rows``, ``max_bytes`` of a shard are the
        old job's unless given. A second call returns the first new job.

        The retry of a ``run`` goes to the default queue, because its worker is gone; but with a sandbox, which is gone,
        too, to a queue of its own: ``batchpipe wait`` starts both again.

        Raises JobNotFound, InvalidInput, PermanentError (``not_ended``, ``nothing_to_retry``; ``retried``: the first
        new job has other sizes than asked for now).
        """
        old = self.store.jobs.get(job_id)
        own_queue = old.input_here and old.account == SANDBOX_ACCOUNT
        if not old.state.ended:
            raise PermanentError(f"job {job_id} has not ended; its rows may still come", code="not_ended")
        if not old.failed and not old.missing:
            raise PermanentError(f"job {job_id} has no rows to retry", code="nothing_to_retry")
        new = self.submit(
            self._failed_requests(old),
            output=output or f"{old.output.rstrip('/')}/retry-{new_job_id().removeprefix('job_')}",
            endpoint=old.endpoint,
            completion_window=old.completion_window,
            metadata=old.metadata,
            extra=old.extra,
            account=old.account,
            name=old.name,
            tags={**old.tags, "retry_of": old.id},
            key=f"retry-{old.id}",  # after a second call, they are still paid for once
            queue=_own_queue(self.settings) if own_queue else None if old.input_here else old.queue,
            on_done=old.on_done,
            max_rows=old.max_rows if max_rows is None else max_rows,
            max_bytes=old.max_bytes if max_bytes is None else max_bytes,
            attempts=old.attempts,
            own_queue=own_queue,
            notify_sites=old.notify_sites,
        )
        for name, size in (("max_rows", max_rows), ("max_bytes", max_bytes)):
            if size is not None and getattr(new.record, name) != size:
                message = (
                    f"job {old.id} was retried as {new.id}, with {name} {getattr(new.record, name)}: "
                    f"when that has ended, retry it with the size you want"
                )
                raise PermanentError(message, code="retried")
        return new

    def _failed_requests(self, job: JobRecord) -> Iterator[bytes]:
        """Request lines of the rows that are not ok, in input order, from the job's workspace."""
        workspace = workspace_of(job, self.settings)
        files = {
            shard.index: shard.file
            for shard in self.store.shards.of_job(job, fields=("round", "file"))
            if shard.round == 1
        }
        with workspace.reader(job.order_files[0]) as order, workspace.reader(INDEX) as index:
            yield from iter_failed_requests(order, workspace, files, index)

    # -- finding ---------------------------------------------------------------------------------------------------

    def get_job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return Job(self.store.jobs.get(job_id), self)

    def list_jobs(self, *, state: State | str | None = None, limit: int = 100) -> list[Job]:
        """Newest first."""
        try:
            wanted = State(state) if state is not None else None
        except ValueError:
            raise InvalidInput(f"{state!r} is no state of a job", field="state") from None
        return [Job(record, self) for record in self.store.jobs.newest(state=wanted, limit=limit)]

    # -- acting ----------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: the flag in its record decides, revoking its tasks only speeds it up. No error if it has ended.

        A job of many shards takes no longer: some are woken here, the others by the next sweeps.
        """
        job_id = self.get_job(job_id).id  # it may be an alias
        asked, shards = self.store.jobs.cancel(job_id, published=WOKEN_AT_ONCE)
        if asked:
            turns = tasks.runtime(self.settings).jobs
            tasks.revoke(wake_first(turns, job_id, shards, "always"))
            note_workspace(self.settings, self.store.jobs.get(job_id), cancel=True)
            turns.log(job_id, [("cancel_asked", {})])
        return self.get_job(job_id)

    def resume_job(self, job_id: str) -> bool:
        """Send the rows that a job holds because a batch of it was cancelled elsewhere. Returns whether it held any.

        Raises JobNotFound.
        """
        return self._decide(self.get_job(job_id).record, "resend")

    def land(self, job_id: str) -> Job:
        """Collect what is there. For a held job, nothing more is sent. For an ended job, the batches that it stopped
        waiting for are read again, and their rows merged into its results, wherever these lie now; until then it is
        running. May be repeated.

        Raises JobNotFound, OutputInUse, PermanentError (``not_ended``, ``nothing_to_land``).
        """
        job = self.get_job(job_id).record
        if not job.state.ended:
            if not self._decide(job, "land") and not job.send_no_more:
                message = f"job {job.id} has not ended, and nothing holds it: follow it with batchpipe wait {job.id}"
                raise PermanentError(message, code="not_ended")
            return self.get_job(job.id)
        if not (first := list(islice(self._given_up(job), WOKEN_AT_ONCE))):
            raise PermanentError(
                f"job {job.id} has nothing to land: it waits for no more batches", code="nothing_to_land"
            )
        if job.total and not Folder(job.workspace, private=True).exists(job.order_files[0]):
            raise PermanentError(
                f"the workspace of job {job.id} is no longer there: {job.workspace}", code="no_workspace"
            )
        in_output = results_place(job).url == Folder(job.output).url  # else a later job has moved them out of there
        verdict = self.store.jobs.land(job.id, self._given_up(job), in_output=in_output)
        if verdict == "output":
            raise OutputInUse(f"another job that has not ended writes to the output of job {job.id}: {job.output}")
        if verdict == "not_closed":
            raise PermanentError(
                f"the receivers of job {job.id} are still being notified; try again in a minute", code="not_told"
            )
        if verdict == "ok":  # else another caller has just asked for it
            turns = tasks.runtime(self.settings).jobs
            turns.log(job.id, [("landing", {"shards": self.store.jobs.get(job.id).open})])
            for index in first:  # the sweeps find the others
                turns.wake(job.id, index, when="overdue")
        return self.get_job(job.id)

    def _given_up(self, job: JobRecord) -> Iterator[int]:
        """Indexes of the shards of an ended job with batches that may have more rows than were collected."""
        for shard in self.store.shards.of_job(job, fields=("batch_id", "error")):
            if shard.batch_id is not None and shard.error is not None and shard.error.code in LANDABLE:
                yield shard.index

    def _decide(self, job: JobRecord, decision: Literal["resend", "land"]) -> bool:
        verdict, shards = self.store.jobs.resolve_hold(job.id, decision, published=WOKEN_AT_ONCE)
        if verdict != "ok":
            return False
        turns = tasks.runtime(self.settings).jobs
        turns.log(job.id, [("hold_ended", {"then": decision})])
        wake_first(turns, job.id, shards, "asleep")
        return True

    def wake(self, job_id: str) -> None:
        """Publish all open work of a job again, for a caller who knows that its worker is gone: some of it at once, the
        rest of a large job with the next sweeps. Raises JobNotFound.
        """
        wake_job(tasks.runtime(self.settings).jobs, job_id)

    def sweep(self, *, listing: bool | None = None) -> int:
        """One pass of the safety net. Returns how many records were published again.

        ``listing``: read the accounts' lists of batches now (True), not at all (False), or if it is time (None).
        """
        return sweep(tasks.runtime(self.settings).jobs, listing=listing)

    def resume(self, account: str) -> Resumed:
        """End an account's pause: all waiting shards go on. Without a pause, those that wait for a person do.

        Many waiting shards take no longer: some are woken here, the others by the next sweeps.
        """
        return resume_account(tasks.runtime(self.settings).jobs, account.lower())

    def recover(
        self, folders: Sequence[str] = (), *, dry_run: bool = False, jobs: Sequence[str] = (), of: Sequence[str] = ()
    ) -> Report:
        """Rebuild records that Redis has lost, or with ``dry_run`` only report: see ``recover``.

        Raises InvalidInput, SettingsError.
        """
        if not self.durable and not dry_run:
            raise SettingsError(
                "no redis-server was found, and the built-in stand-in would forget the records again: install "
                "redis-server (or valkey), or set BATCHPIPE_REDIS_URL"
            )
        return recover(tasks.runtime(self.settings).jobs, folders, dry_run=dry_run, jobs=jobs, of=of)

    def follow(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        tick: Callable[[JobRecord], None] = lambda job: None,
        pause: float = 0.2,
    ) -> JobRecord:
        """Read a job again and again until it is closed (see ``waiting.follow``)."""
        return follow(self.store, job_id, timeout=timeout, tick=tick, pause=pause)


def _own_queue(settings: Settings) -> str:
    return f"{settings.queue}.run.{new_job_id().removeprefix('job_')}"


_default: Client | None = None
_making = threading.Lock()


def default_client() -> Client:
    """The client of this process's settings. Raises SettingsError."""
    global _default
    with _making:
        if _default is None or _default.settings is not current_settings():
            _default = Client()
        return _default


def submit(
    input: Input,
    *,
    output: str | Path | None = None,
    endpoint: str = "/v1/chat/completions",
    completion_window: str = "24h",
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    account: str = "default",
    name: str | None = None,
    key: str | None = None,
    tags: Mapping[str, Any] | None = None,
    queue: str | None = None,
    on_done: Any = None,
    max_rows: int | None = None,
    max_bytes: int | None = None,
    attempts: int | None = None,
) -> Job:
    """Enqueue a batch job and return at once; a worker does the rest.

    ``input``: a path or URL of a JSONL file, read by the worker; or any iterable of requests, as dicts or as
    pydantic, msgspec or dataclass objects, which is written to the workspace first, a line at a time.
    ``output``: a folder or URL for ``output.jsonl``, ``errors.jsonl`` and ``job.json``; without it, a folder of its
    own under the workspace setting or the user's data.
    ``metadata``: at most 13 pairs for the provider's batches; ``extra``: further arguments of ``batches.create``.
    ``key``: a second submit with the same key returns the first job. ``tags`` (user, tenant) stay with us.
    ``on_done``: a Celery signature, sent with the job id when the job has ended, whatever its end, at least once.
    ``max_rows``, ``max_bytes`` (newlines included): the most in one shard; ``attempts``: rounds a row may go through.

    Within a transaction of Django (``batchpipe.contrib.django``) the job is recorded and sent when that commits, and
    not at all if it rolls back; if its ``key`` is taken by then, its id refers to the first job from then on.

    Raises InvalidInput, OutputInUse, SettingsError, StoreUnavailable (Redis did not answer: it is not certain that the
    job was recorded; with a ``key`` it is safe to call again).
    """
    client = default_client()
    job = client.submit(
        input,
        output=output,
        endpoint=endpoint,
        completion_window=completion_window,
        metadata=metadata,
        extra=extra,
        account=account,
        name=name,
        key=key,
        tags=tags,
        queue=queue,
        on_done=on_done,
        max_rows=max_rows,
        max_bytes=max_bytes,
        attempts=attempts,
    )
    warn_of_submit(client.store, client.settings, job.record)
    return job


def get_job(job_id: str) -> Job:
    """The job with this id. Raises JobNotFound, StoreUnavailable."""
    return default_client().get_job(job_id)


def list_jobs(*, state: State | str | None = None, limit: int = 100) -> list[Job]:
    """Jobs, newest first. Raises StoreUnavailable."""
    return default_client().list_jobs(state=state, limit=limit)


def cancel(job_id: str) -> Job:
    """Cancel a job; finished rows are kept. Raises JobNotFound, StoreUnavailable."""
    return default_client().cancel(job_id)


Job._find = get_job

__all__ = ["BatchResult", "Client", "Job", "JobNotFound", "Outcome", "cancel", "get_job", "list_jobs", "submit"]
