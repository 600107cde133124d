"""submit, get_job, list_jobs, cancel: what a program calls, from any process."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from batchpipe.client.finding import find_job
from batchpipe.client.job import Job
from batchpipe.client.listeners import Ask, Watch, deserted, missing_worker, warn_of_submit
from batchpipe.client.measures import Measures, Meter
from batchpipe.client.moments import Moments
from batchpipe.client.notifications import Notifications
from batchpipe.client.options import SubmitOptions, complete, shows_options
from batchpipe.client.recipes import recipe_of
from batchpipe.client.recording import record_job
from batchpipe.client.retry import (
    check_retriable,
    check_retries,
    check_sizes,
    failed_requests,
    owned_by_retry,
    retry_options,
    retry_recipe,
)
from batchpipe.client.submission import (
    Input,
    as_text,
    held_back,
    new_record,
    new_run_queue,
    with_input,
    with_recipe,
)
from batchpipe.client.waiting import follow
from batchpipe.client.webhooks import WebhookReceiver, receiver_of
from batchpipe.config.account import SANDBOX_ACCOUNT
from batchpipe.config.environment import bare_environment
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import NO_QUOTA, InvalidInput, JobNotFound, SettingsError
from batchpipe.local_redis import acquire
from batchpipe.model.outcome import Outcome
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import JobRecord, State, new_job_id
from batchpipe.model.stats import Clock, Pause, Stats
from batchpipe.model.views import Moment, job_view
from batchpipe.pipeline.manifest import note_workspace
from batchpipe.pipeline.result_tables import check_arrow
from batchpipe.pipeline.results import BatchResult
from batchpipe.store import Store, WebhookState, open_store

if TYPE_CHECKING:
    from batchpipe.client.health import Health
    from batchpipe.pipeline.job_runner import JobRunner
    from batchpipe.pipeline.republish_many import Resumed
    from batchpipe.recover import Report


class Client:
    """The client of one Redis. Programs use the functions of this module; commands make one with their own settings."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Without REDIS_URL the private Redis is found or started, for as long as this process lives.

        Raises SettingsError.
        """
        site = current_site()
        settings = settings or site.settings
        if settings.redis_url is None:
            handle = acquire(settings.home, environment=bare_environment())
            atexit.register(handle.close)
            settings = settings.with_redis(handle.server.url, durable=handle.server.durable)
        self.settings = site.settings = settings
        self.durable = settings.durable
        self._meter = Meter(lambda: self.store, lambda: self.settings.accounts)

    @property
    def store(self) -> Store:
        return current_site().keep(open_store, self.settings)

    @property
    def _runner(self) -> JobRunner:
        """What publishes, sweeps and logs. Celery is loaded with it, which a command that only reads does not need."""
        from batchpipe.tasks.runtime import runtime

        return runtime(self.settings).job_runner

    # -- submitting ------------------------------------------------------------------------------------------------

    def submit(
        self,
        input: Input,
        *,
        own_queue: bool = False,
        replace_job: str = "",
        notify_sites: Sequence[str] = (),
        may_come_later: bool = False,
        recipe: Recipe | None = None,
        retry_of: JobRecord | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job:
        """Record a job and enqueue it. See ``batchpipe.submit``; the other arguments are for commands, retries and
        schedules.

        ``own_queue``: only this host works on it (``run``).
        ``replace_job``: take the key from this job; "1": from any.
        ``notify_sites``: names of the receivers to notify of its end, instead of those of this process.
        ``may_come_later``: wait for an input that is not there yet.
        ``recipe``: instead of the options that make one. ``retry_of``: the job whose rows are sent again.
        """
        options = complete(options)
        recipe = recipe or recipe_of(options)
        job_id, key = new_job_id(), as_text(options["key"], "key")
        if key is not None and not replace_job and (first := self.store.jobs.id_of_key(key)) is not None:
            return self.get_job(first)
        if not self.durable and not self.settings.is_sandbox(options["account"]):
            raise SettingsError(
                "no redis-server was found, and the built-in stand-in forgets what was paid for when it stops: install "
                "redis-server (or valkey), or set BATCHPIPE_REDIS_URL; a sandbox needs neither: BATCHPIPE_SANDBOX=true"
            )
        from batchpipe.tasks.app import check_not_eager

        check_not_eager()  # nor with a broker URL that cannot be used: raised before anything is recorded
        record = new_record(self.settings, job_id, options, own_queue=own_queue, notify_sites=notify_sites)
        if own_queue and "parquet" in record.formats:
            check_arrow()  # its worker is of this environment
        if retry_of is not None:
            owns = [*record.owns, *owned_by_retry(retry_of, self.store)]
            record = record.evolve(retry_of=retry_of.id, owns=list(dict.fromkeys(owns)))
        record = with_recipe(record, recipe, self.settings)
        record = with_input(
            record,
            input,
            self.settings,
            may_come_later=may_come_later,
            recipe=recipe,
            request=options["request"],
        )
        later = not replace_job and self._record_later(record)
        job = Job(record, self, held=True) if later else self._record(record, replace_job)
        job.answer_model = options["answer"] if isinstance(options["answer"], type) else None
        return job

    def _record_later(self, record: JobRecord) -> bool:
        """If a framework's transaction is open, let its commit record the job. Returns whether one is open."""

        def commit() -> None:
            self._record(record, "", alias=True)

        return held_back(commit)

    def _record(self, record: JobRecord, replace_job: str, *, alias: bool = False) -> Job:
        made = record_job(self.settings, self.store, self._runner.publish, record, replace_job=replace_job, alias=alias)
        return self.get_job(made) if isinstance(made, str) else Job(made.record, self, heard=made.is_heard)

    def retry(
        self,
        job_id: str,
        *,
        output: str | Path | None = None,
        only: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
    ) -> Job:
        """Send the rows of an ended job that are not ok as a new job; when that has ended, the results of the first
        show both as one. ``only``: rows with these error codes or statuses; ``changes``: fields of their bodies.
        ``max_rows``, ``max_bytes`` of a shard are the old job's unless given. A second call with the same ``only`` and
        ``changes`` returns the first new job.

        The retry of a ``run`` goes to the default queue, because its worker is gone; but with a sandbox, which is gone,
        too, to a queue of its own: ``batchpipe wait`` starts both again.

        Raises JobNotFound, InvalidInput, PermanentError (``not_ended``, ``nothing_to_retry``; ``retried``: the first
        new job has other sizes than asked for now, or another retry has not ended).
        """
        old = self.store.jobs.get(job_id)
        check_retriable(old)
        own_queue = old.input_here and old.account == SANDBOX_ACCOUNT
        queue = new_run_queue(self.settings) if own_queue else None if old.input_here else old.queue
        sizes = {"max_rows": max_rows, "max_bytes": max_bytes}
        options = retry_options(old, output=output, queue=queue, only=only, changes=changes, **sizes)
        if self.store.jobs.id_of_key(options["key"] or "") is None:
            check_retries(self.store, old)
        rows = failed_requests(self.store, old, self.settings, only, changes)
        new = self.submit(
            rows,
            own_queue=own_queue,
            notify_sites=old.notify_sites,
            recipe=retry_recipe(old, self.settings),
            retry_of=old,
            **options,
        )
        check_sizes(old, new.record, max_rows=max_rows, max_bytes=max_bytes)
        return new

    # -- finding ---------------------------------------------------------------------------------------------------

    def get_job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return Job(self.store.jobs.get(job_id), self)

    def find_job(self, text: str) -> Job:
        """The job that a person means: its id, a beginning of that which fits no other (with ``job_`` or without, four
        characters at least), or ``last``, the latest one. Programs use ``get_job``.

        Raises JobNotFound, InvalidInput (``ambiguous_job``).
        """
        return Job(find_job(self.store, text), self)

    def show(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """``list --json``: these jobs as JSON objects, without their shards. Raises StoreUnavailable."""
        moments = Moments(self.store, self.settings)
        moments.prepare(job.record for job in jobs)
        return [job_view(job.record, moment=moments.of_list(job.record)) for job in jobs]

    def moment_of(self, job: Job) -> Moment:
        """What is shown of a job beside its records: our time, the pause of its account. Raises StoreUnavailable."""
        return Moments(self.store, self.settings).of(job.record)

    def find_by_key(self, key: str) -> Job | None:
        """The job that was submitted with this key."""
        job_id = self.store.jobs.id_of_key(key)
        return self.get_job(job_id) if job_id is not None else None

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

        A job of many shards takes no longer: some are published again here, the others by the next sweeps.
        """
        job_id = self.get_job(job_id).id  # it may be an alias
        from batchpipe.pipeline.republish_many import PUBLISHED_AT_ONCE, republish_first
        from batchpipe.tasks import publishing

        asked, shards = self.store.jobs.cancel(job_id, published=PUBLISHED_AT_ONCE)
        if asked:
            runner = self._runner
            publishing.revoke(republish_first(runner, job_id, shards, "always"))
            note_workspace(self.settings, self.store.jobs.get(job_id), cancel=True)
            runner.log(job_id, [("cancel_asked", {})])
        return self.get_job(job_id)

    def resume_job(self, job_id: str) -> bool:
        """Send the rows that a job holds because a batch of it was cancelled elsewhere. Returns whether it held any.

        Raises JobNotFound.
        """
        from batchpipe.client.landing import decide

        return decide(self._runner, self.get_job(job_id).id, "resend")

    def land(self, job_id: str) -> Job:
        """Collect what is there. For a held job, nothing more is sent. For an ended job, the batches that it stopped
        waiting for are read again, and their rows merged into its results, wherever these lie now; until then it is
        running. May be repeated.

        Raises JobNotFound, OutputInUse, PermanentError (``not_ended``, ``nothing_to_land``).
        """
        job = self.get_job(job_id).record
        from batchpipe.client.landing import land

        land(self._runner, job)
        return self.get_job(job.id)

    def republish(self, job_id: str) -> None:
        """Publish all open work of a job again, for a caller who knows that its worker is gone: some of it at once, the
        rest of a large job with the next sweeps. Raises JobNotFound.
        """
        from batchpipe.pipeline.republish_many import republish_job

        republish_job(self._runner, job_id)

    def sweep(self, *, listing: bool | None = None) -> int:
        """One pass of the safety net. Returns how many records were published again.

        ``listing``: read the accounts' lists of batches now (True), not at all (False), or if it is time (None).
        """
        from batchpipe.pipeline.sweep import sweep

        return sweep(self._runner, listing=listing, alone=True)

    def notifications(self) -> Notifications:
        """Those that are not delivered."""
        return Notifications(self.store, self.settings)

    def resume(self, account: str) -> Resumed:
        """End an account's pause: all waiting shards go on. Without a pause, those that wait for a person do.

        Many waiting shards take no longer: some are published again here, the others by the next sweeps.
        """
        from batchpipe.pipeline.republish_many import resume_account

        return resume_account(self._runner, account.lower())

    def lift_pause(self, account: str) -> bool:
        """End an account's pause, if there is one: each shard goes on at its own time. Returns whether there was one.

        For a caller who sends something to the account now: the cause is corrected, or shows again at once.
        """
        return self.store.accounts.resume(account)

    def key_works(self, account: str) -> bool:
        """The provider takes the account's key: end its pause, unless that is for a quota which is used up. Returns
        whether it was paused.
        """
        pause = self.store.accounts.pause_of(account)
        return pause is not None and pause.code != NO_QUOTA and self.resume(account).paused

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
        from batchpipe.recover import recover

        return recover(self._runner, folders, dry_run=dry_run, jobs=jobs, of=of)

    # -- the provider's webhooks -------------------------------------------------------------------------------------

    def webhooks(self) -> WebhookReceiver:
        """Receives webhooks for the accounts of these settings. Raises SettingsError."""
        return current_site().keep(receiver_of, self)

    def webhook_state(self, account: str) -> WebhookState:
        """When webhooks of this account came, and whether they are relied on. Raises StoreUnavailable."""
        return self.store.news.state(account.lower())

    # -- looking ---------------------------------------------------------------------------------------------------

    def follow(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        tick: Callable[[Job], None] = lambda job: None,
        pause: float = 0.2,
    ) -> Job:
        """Read a job again and again until it is closed (see ``waiting.follow``); ``tick`` gets it at each reading."""
        record = follow(self.store, job_id, timeout=timeout, tick=lambda record: tick(Job(record, self)), pause=pause)
        return Job(record, self)

    def ping(self) -> None:
        """One short try. Raises StoreUnavailable."""
        self.store.ping()

    def clock(self) -> Clock:
        """The time of all records, and what is known of Redis' clock."""
        return self.store.connection.clock()

    def now(self) -> float:
        """The time of all records, in unix seconds."""
        return self.store.now()

    def pause_of(self, account: str) -> Pause | None:
        """Why an account is paused, and for how many more seconds."""
        return self.store.accounts.pause_of(account)

    def stats(self) -> Stats:
        """A few numbers about all jobs, at the cost of a few reads."""
        return self.store.counters.stats()

    def measure(self) -> Measures:
        """All numbers for metrics. Raises StoreUnavailable."""
        return self._meter.read()

    def health(self) -> Health:
        """What ``doctor`` looks at."""
        from batchpipe.client.health import Health

        return Health(self.store, self.settings)

    def missing_worker(self, job: Job, *, ask: Ask = "always") -> str:
        """One line that says that no worker listens on this job's queue, and what to start; else "". ``ask``: see
        ``listeners``.
        """
        return missing_worker(self.store, self.settings, job.record, ask=ask)

    def deserted(self, queues: Collection[str], *, ask: Ask = "always") -> set[str]:
        """Those of these queues on which no worker listens."""
        return deserted(self.store, queues, ask=ask)

    def watch(self, say: Callable[[str], object] | None = None) -> Watch:
        """Called repeatedly with a job's record, it says if no worker listens on its queue."""
        return Watch(self.store, self.settings, say)


def default_client() -> Client:
    """The client of the current site. Raises SettingsError."""
    site = current_site()
    return site.keep(Client, site.settings)


@shows_options
def submit(input: Input, **options: Unpack[SubmitOptions]) -> Job:
    """Enqueue a batch job and return at once; a worker does the rest.

    ``input``: paths, URLs or patterns of files, read by the worker: JSONL of requests, or with a ``prompt`` a table
    (CSV, Parquet, JSONL of plain rows), compressed or not; or any iterable of rows or requests, as dicts or as
    pydantic, msgspec or dataclass objects, a frame or an open file, which is written to the workspace first.
    ``options``: see ``batchpipe.client.options.SubmitOptions``.

    Within a transaction of Django (``batchpipe.contrib.django``) the job is recorded and sent when that commits, and
    not at all if it rolls back; if its ``key`` is taken by then, its id refers to the first job from then on.

    Raises InvalidInput, OutputInUse, SettingsError, StoreUnavailable (Redis did not answer: it is not certain that the
    job was recorded; with a ``key`` it is safe to call again).
    """
    options = complete(options)
    client = default_client()
    job = client.submit(input, **options)
    if not job.heard:
        warn_of_submit(client.store, client.settings, job.record)
    return job


def get_job(job_id: str) -> Job:
    """The job with this id; only commands take a part of it. Raises JobNotFound, StoreUnavailable."""
    return default_client().get_job(job_id)


def list_jobs(*, state: State | str | None = None, limit: int = 100) -> list[Job]:
    """Jobs, newest first. Raises StoreUnavailable."""
    return default_client().list_jobs(state=state, limit=limit)


def cancel(job_id: str) -> Job:
    """Cancel a job; finished rows are kept. Raises JobNotFound, StoreUnavailable."""
    return default_client().cancel(job_id)


Job._find = get_job
__all__ = ["BatchResult", "Client", "Job", "JobNotFound", "Outcome", "cancel", "get_job", "list_jobs", "submit"]
