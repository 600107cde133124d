"""Records what people and programs are to be told; ``tasks.delivery`` sends it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.config.target import NewsType
from batchpipe.errors import BatchpipeError, JobNotFound, RecordUnreadable
from batchpipe.model.notifications import Notification, account_paused, job_ended, job_trouble
from batchpipe.model.records import JobRecord, Problem
from batchpipe.store import Store

logger = logging.getLogger(__name__)

#: How often a process logs that notifications are dropped.
SAY_SECONDS = 3_600.0


class Notices:
    """Who is told of what: the targets of a job, of its account, and those of all."""

    def __init__(
        self, settings: Settings, store: Store, deliver_soon: Callable[[str], None] = lambda queue: None
    ) -> None:
        """``deliver_soon`` asks a worker of a queue to send what is due; the sweep does so anyhow."""
        self._settings, self._store, self._deliver_soon = settings, store, deliver_soon

    def job_ended(self, job: JobRecord) -> None:
        """Call it before the job counts as told: it may be called again. Raises StoreUnavailable."""
        now = job.ended_at or self._store.now()
        self._record(
            [job_ended(job, target, now) for target in self._targets("job.ended", job.account, job)], job.queue
        )

    def job_trouble(self, job_id: str, event: str, message: str) -> None:
        """A job needs somebody. Told once in six hours. Raises StoreUnavailable."""
        try:
            job = self._store.jobs.get(job_id)
        except (JobNotFound, RecordUnreadable):
            return
        now = self._store.now()
        targets = self._targets("job.trouble", job.account, job)
        self._record([job_trouble(job, target, event, message, now) for target in targets], job.queue)

    def account_paused(self, account: str, problem: Problem, seconds: float) -> None:
        """Told once in six hours for each code, however many shards meet the pause. Raises StoreUnavailable."""
        now = self._store.now()
        targets = self._targets("account.paused", account)
        notes = [account_paused(account, target, problem, seconds, now) for target in targets]
        self._record(notes, self._settings.queue)

    def _targets(self, kind: NewsType, account: str, job: JobRecord | None = None) -> Iterator[str]:
        of_account = self._settings.known_account(account).notify
        names = [*(job.notify if job is not None else ()), *of_account, *self._settings.notify]
        for name in dict.fromkeys(name if "://" in name else name.lower() for name in names):
            target = self._settings.targets.get(name)
            if target is None or kind in target.events:
                yield name

    def _record(self, notes: list[Notification], queue: str) -> None:
        answers = [self._store.outbox.add(note) for note in notes]
        for note in (note for note, answer in zip(notes, answers, strict=True) if answer == "full"):
            _say_full(note)
        if "ok" in answers:
            self._ask(queue)

    def _ask(self, queue: str) -> None:
        """They are recorded and due: whatever goes wrong here, with a site's app for instance, a sweep asks again."""
        try:
            self._deliver_soon(queue)
        except Exception as error:
            logger.warning("delivery not asked for: %s", type(error).__name__, extra={"event": "not_told"})


def _say_full(note: Notification) -> None:
    """Once an hour; each is counted in the metrics."""
    if current_site().is_first_time("outbox_full", seconds=SAY_SECONDS):
        words = (
            "%s is not told to anybody, nor is what follows: too many notifications wait; see `batchpipe notifications`"
        )
        logger.error(words, note.type, extra={"event": "not_told", "job": note.job or None})


def record_safely(tell: Callable[[], None]) -> None:
    """For news that is told beside something else: a Redis that is away, or wrong settings, must not fail that."""
    try:
        tell()
    except BatchpipeError as error:
        logger.warning("not recorded for notification: %s", error, extra={"event": "not_told"})
