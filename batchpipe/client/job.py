"""The handle of one job, as ``submit`` and ``get_job`` return it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import orjson

from batchpipe.client.forecasts import Forecasts
from batchpipe.client.listeners import Watch
from batchpipe.client.moments import Moments, say_that_somebody_watches
from batchpipe.client.waiting import follow, follow_log
from batchpipe.config.settings import Settings
from batchpipe.errors import JobNotFound, PermanentError
from batchpipe.model.answers import OutcomeState
from batchpipe.model.eta import Eta
from batchpipe.model.outcome import Outcome
from batchpipe.model.progress import Progress, progress_of_job
from batchpipe.model.reasons import reasons_view
from batchpipe.model.records import JobRecord, Problem, ShardRecord, State
from batchpipe.model.views import (
    MEASURED,
    OUTPUT_FILE,
    SHOWN,
    Moment,
    Sums,
    job_view,
    json_of_job,
    metrics_view,
    page_view,
    shard_view,
    summary_view,
)
from batchpipe.pipeline.job_results import JobResults
from batchpipe.pipeline.manifest import located, results_place
from batchpipe.pipeline.reason_samples import read_samples
from batchpipe.pipeline.result_tables import Column, arrow_table, chosen_columns, polars_frame, table_columns
from batchpipe.pipeline.results import BatchResult
from batchpipe.pipeline.retried import results_of
from batchpipe.storage import Folder
from batchpipe.store import Store
from batchpipe.store.events import LOG_LENGTH

#: Events that the log of a job keeps.
MOST_EVENTS = LOG_LENGTH
#: Shards of a page.
MOST_SHOWN = 1_000


class ClientLike(Protocol):
    """What a handle needs of the client that it came from."""

    @property
    def settings(self) -> Settings: ...

    @property
    def store(self) -> Store: ...

    def cancel(self, job_id: str) -> Job: ...

    def land(self, job_id: str) -> Job: ...


class Job:
    """One job, as last read. Its data do not change until ``refresh()``."""

    #: Finds a job by its id alone, with the settings of this process; set by ``client``.
    _find: ClassVar[Callable[[str], Job]]

    def __init__(self, record: JobRecord, client: ClientLike, *, held: bool = False, heard: bool = False) -> None:
        """``held``: it is recorded when the caller's transaction commits, and known only here until then. ``heard``: a
        worker listens on its queue.
        """
        self.record = record
        self._client = client
        self._held = held
        self.answer_model: Any = None  #: the pydantic model that it was submitted with, in this process
        self.heard = heard

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state.value}>"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def name(self) -> str | None:
        return self.record.name

    @property
    def tags(self) -> dict[str, Any]:
        return self.record.tags

    @property
    def error(self) -> Problem | None:
        return self.record.error

    def refresh(self) -> Job:
        """Read it again. Raises JobNotFound."""
        try:
            self.record = self._client.store.jobs.get(self.id)
        except JobNotFound:
            if self._held:
                message = f"job {self.id} is submitted when the transaction around it commits, and not if it rolls back"
                raise JobNotFound(message) from None
            raise
        self._held = False
        return self

    def _recorded(self) -> str:
        """Its id in Redis: an id that was returned within a transaction may now refer to another job."""
        return self.refresh().id if self._held else self.id

    def wait(self, timeout: float | None = None) -> Job:
        """Block until the job has ended. Raises TimeoutError after ``timeout`` seconds.

        If no worker listens on its queue, a warning in Python's log says so, and what to start.
        """
        store = self._client.store
        self.record = follow(store, self.refresh().id, timeout=timeout, tick=Watch(store, self._client.settings))
        return self

    def cancel(self) -> Job:
        """Cancel it; finished rows are kept. No error if it has ended or was cancelled before."""
        self.record = self._client.cancel(self._recorded()).record
        return self

    def land(self) -> Job:
        """Collect what is there. For a job that is held because a batch was cancelled elsewhere, nothing more is sent.
        For an ended job, the batches that it stopped waiting for are read again, and their rows added to its results.

        Raises PermanentError (``not_ended``, ``nothing_to_land``).
        """
        self.record = self._client.land(self._recorded()).record
        return self

    def result(self) -> BatchResult:
        """The result files and row counts. Raises PermanentError (``not_ended``) while the job runs."""
        view = job_view(located(self._ended(), remote=True, roots=self._client.settings.roots()))
        rows = view["rows"]
        return BatchResult(
            view["output_file"], view["error_file"], rows["total"], rows["ok"], rows["failed"], rows["missing"]
        )

    def results(self, model: Any = None, *, retries: bool = True) -> Iterator[Outcome]:
        """The outcome of each row, in input order, read lazily; those of its retries that have ended in place of rows
        that are not ok, unless ``retries`` is false. ``model``: a pydantic model; the ``answer`` of a row is then an
        object of it, and None where it is not valid. Raises PermanentError (``not_ended``).
        """
        found = self._results(model, retries=retries)
        return iter(found if found is not None else ())

    def lines(self, *, retries: bool = True) -> Iterator[tuple[OutcomeState, bytes]]:
        r"""The state of each row and its line with its ``\n``, in the same order: the provider's, or that of
        ``errors.jsonl``. Raises PermanentError (``not_ended``).
        """
        found = self._results(retries=retries)
        return found.lines() if found is not None else iter(())

    def _results(self, model: Any = None, *, retries: bool = True) -> JobResults | None:
        job, settings = self._ended(), self._client.settings
        if retries and job.closed:
            job = self.refresh().record
        if not job.results:  # refused or cancelled before anything was sent: there are no rows, and no files
            return None
        shown = job if retries else job.evolve(retries=[])
        return results_of(shown, self._client.store, settings, model=model or self.answer_model)

    def table(self, names: Sequence[str] = (), *, retries: bool = True) -> tuple[list[Column], Iterable[Outcome]]:
        """The columns of its results as a table, and the rows that they are read from. ``names``: only these columns.

        Raises PermanentError (``not_ended``), InvalidInput (``column_unknown``).
        """
        found = self._results(retries=retries)
        columns = found.columns() if found is not None else table_columns(None, None)
        return chosen_columns(columns, names) if names else columns, found if found is not None else ()

    def to_arrow(self) -> Any:
        """Its results as a ``pyarrow.Table``: the columns of its input, then its answers. Raises PermanentError
        (``not_ended``), SettingsError (pyarrow is missing).
        """
        columns, rows = self.table()
        return arrow_table(columns, rows)

    def to_pandas(self) -> Any:
        """The same as a ``pandas.DataFrame``. Raises as ``to_arrow``."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """The same as a ``polars.DataFrame``. Raises as ``to_arrow``."""
        return polars_frame(self.to_arrow())

    def errors(self) -> Iterator[Outcome]:
        """The rows that are not ok, in input order, read lazily."""
        return (row for row in self.results() if row.state != "ok")

    def logs(self) -> list[dict[str, Any]]:
        """The job's events, oldest first: ``{"id", "at" (unix seconds), "event", ...}``; the last 2,000 are kept."""
        return self._client.store.events.read(self._recorded())

    def iter_logs(self, *, follow: bool = False, after: str = "-") -> Iterator[dict[str, Any]]:
        """The job's events, oldest first; with ``follow`` further ones as they come, until it is closed.

        ``after``: the ``id`` of the last event that the caller already has.
        """
        store, job_id = self._client.store, self._recorded()
        return follow_log(store, job_id, after=after) if follow else iter(store.events.read(job_id, after=after))

    def metrics(self) -> dict[str, Any]:
        """Rows, tokens, intended calls, waits, seconds in each stage, and ``cost_usd``: an estimate at OpenAI's batch
        list prices.

        The cost covers the rows collected so far, each at the price for its own length; null for other providers and
        for models without a known batch price.
        """
        store = self._client.store
        self.refresh()
        return metrics_view(self.record, self.shards(MEASURED), store.now(), store.events.read(self.id))

    def to_dict(self, *, shards: bool = True) -> dict[str, Any]:
        """What ``batchpipe status --json`` prints."""
        if not shards:  # as last read: neither a file nor Redis is looked at
            return job_view(self.record)
        found = self._located()
        return job_view(found, self.shards(SHOWN), self._moment(found, files=True))

    def to_page(self, first: int = 0, most: int = MOST_SHOWN) -> dict[str, Any]:
        """``to_dict()`` with at most so many shards, from an index on; ``shards_in_all``; and ``next``: the index to
        continue from, or None. For web pages: a job may have 100,000 shards.
        """
        first, most = max(first, 0), min(max(most, 1), MOST_SHOWN)
        within = range(first, first + most)
        say_that_somebody_watches(self._client.store, self.record)
        shards = self._client.store.shards.of_job(self.record, fields=SHOWN, bad="show", within=within)
        return page_view(self._located(), first, shards, self._moment(self.record))

    def shards(self, fields: Sequence[str] = ()) -> Iterator[ShardRecord]:
        """Its shards as they are recorded now, read several hundred at a time; one that cannot be read is shown as in
        trouble. ``fields``: only these; all others have their defaults. There may be 100,000.
        """
        say_that_somebody_watches(self._client.store, self.record)
        return self._client.store.shards.of_job(self.record, fields=fields, bad="show")

    def _located(self) -> JobRecord:
        return located(self.record, roots=self._client.settings.roots())

    def summary(self, sums: Sums, shards: Iterable[ShardRecord] = ()) -> dict[str, Any]:
        """``to_dict()`` with only some of the ``shards``, and ``sums`` over all."""
        found = self._located()
        moment = self._moment(found, files=True)
        return {**summary_view(found, sums, moment), "shards": [shard_view(shard, moment) for shard in shards]}

    def iter_json(self) -> Iterator[bytes]:
        """The text of ``to_dict()`` as JSON, a part at a time, for jobs of very many shards."""
        found = self._located()
        return json_of_job(found, lambda: self.shards(SHOWN), self._moment(found, files=True))

    def _moment(self, job: JobRecord, *, files: bool = False) -> Moment:
        return Moments(self._client.store, self._client.settings).of(job, files=files)

    def progress(self) -> Progress:
        """How far it is, as last read: rows answered, of how many, rows per second."""
        return progress_of_job(self.record)

    def eta(self) -> Eta | None:
        """When its batches have ended, as likely as the last days of their models tell: usually between two times, nine
        in ten by a third (unix seconds). Its result files follow within a minute or so; rows that fail and are sent
        again take longer.

        None if it has no batch under way, is held or paused, or where too little is known. Reads up to 1,000 shards.
        """
        store = self._client.store
        if self.refresh().state.ended or store.accounts.pause_of(self.record.account) is not None:
            return None
        return Forecasts(store, store.now()).eta(self.record)

    def reasons(self) -> list[dict[str, Any]]:
        """Why rows are not ok, as last read, the most frequent first: ``{"code", "status", "count", "sample"}``; the
        sample, a message, is read from ``errors.jsonl`` where that lies on this host, and None else.
        """
        return reasons_view(
            self.record.reasons, read_samples(self._located(), roots=tuple(self._client.settings.roots()))
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """The handle of a job that ``to_dict`` described, read again. Raises JobNotFound."""
        return cls._find(str(data["id"]))

    def to_json(self) -> str:
        return orjson.dumps(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Job:
        return cls.from_dict(orjson.loads(text))

    def results_folder(self, *, check: bool = True) -> Folder:
        """Where the results lie now, for callers that read the files themselves. Raises as ``results_place`` does.

        ``check``: that it is within ALLOWED_ROOTS, which may have changed since.
        """
        return results_place(self.record, self._client.settings.roots() if check else ())

    def results_are_gone(self) -> bool:
        """Whether it ended with results, and these are no longer there. Raises StorageTrouble."""
        if not self.record.closed or self.to_dict(shards=False)["output_file"] is None:
            return False
        try:
            return not results_place(self.record).exists(OUTPUT_FILE)
        except PermanentError:
            return True

    def _ended(self) -> JobRecord:
        if not self.state.ended:
            self.refresh()
        if not self.state.ended:
            raise PermanentError(f"job {self.id} has not ended: it is {self.state.value}", code="not_ended")
        return self.record
