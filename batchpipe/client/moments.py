"""What is shown of jobs beside their records: our time and the pauses of accounts, read once for many jobs."""

from __future__ import annotations

from batchpipe.config.settings import Settings
from batchpipe.model.records import JobRecord
from batchpipe.model.stats import Pause
from batchpipe.model.views import Moment
from batchpipe.pipeline.reason_samples import read_samples
from batchpipe.store import Store


class Moments:
    """For one look at some jobs: what was read stays as it was."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._now: float | None = None
        self._pauses: dict[str, Pause | None] = {}

    def of(self, job: JobRecord, *, files: bool = False) -> Moment:
        """The moment for one job; nothing is read of Redis for one that has ended. Raises StoreUnavailable.

        ``files``: look for samples of its errors, in the results of a job as ``located`` gives it.
        """
        if job.state.ended:
            samples = read_samples(job, roots=tuple(self._settings.roots())) if files else {}
            return Moment(samples=samples)
        return Moment(now=self.now(), pause=self.pause(job.account))

    def now(self) -> float:
        if self._now is None:
            self._now = self._store.now()
        return self._now

    def pause(self, account: str) -> Pause | None:
        if account not in self._pauses:
            self._pauses[account] = self._store.accounts.pause_of(account)
        return self._pauses[account]
