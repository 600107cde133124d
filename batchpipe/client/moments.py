"""What is shown of jobs beside their records: our time and the pauses of accounts, read once for many jobs."""

from __future__ import annotations

from collections.abc import Iterable

from batchpipe.config.settings import Settings
from batchpipe.model.admission import Waiting
from batchpipe.model.records import JobRecord, ShardRecord
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
        self._rooms: dict[str, tuple[int, Waiting]] | None = None

    def of(self, job: JobRecord, *, files: bool = False) -> Moment:
        """The moment for one job; nothing is read of Redis for one that has ended. Raises StoreUnavailable.

        ``files``: look for samples of its errors, in the results of a job as ``located`` gives it.
        """
        if job.state.ended:
            samples = read_samples(job, roots=tuple(self._settings.roots())) if files else {}
            return Moment(samples=samples)
        room = self._room_of(job)
        shard_room = WaitingShards(self._store) if room is not None else lambda shard: None
        return Moment(now=self.now(), pause=self.pause(job.account), room=room, shard_room=shard_room)

    def prepare(self, jobs: Iterable[JobRecord]) -> None:
        """Read in one go what is asked for each of these jobs. Raises StoreUnavailable."""
        self._rooms = self._store.admission.waiting_jobs([job.id for job in jobs if not job.state.ended])

    def _room_of(self, job: JobRecord) -> tuple[int, Waiting] | None:
        found = self._rooms if self._rooms is not None else self._store.admission.waiting_jobs([job.id])
        return found.get(job.id)

    def now(self) -> float:
        if self._now is None:
            self._now = self._store.now()
        return self._now

    def pause(self, account: str) -> Pause | None:
        if account not in self._pauses:
            self._pauses[account] = self._store.accounts.pause_of(account)
        return self._pauses[account]


class WaitingShards:
    """How shards wait for room, read a hundred at a time: they are asked for in the order of their indexes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, int], Waiting] = {}
        self._read = range(0)

    def __call__(self, shard: ShardRecord) -> Waiting | None:
        if shard.waits_since is None:
            return None
        if shard.index not in self._read:
            self._read = range(shard.index, shard.index + 100)
            self._known = self._store.admission.waiting_of([(shard.job, index) for index in self._read])
        return self._known.get((shard.job, shard.index))
