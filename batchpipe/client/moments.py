"""What is shown of jobs beside their records: our time and the pauses of accounts, read once for many jobs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from batchpipe.client.forecasts import FEW_READ, MOST_READ, Forecasts
from batchpipe.client.rooms import WaitingShards
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import StoreUnavailable
from batchpipe.model.admission import Waiting
from batchpipe.model.eta import eta_view
from batchpipe.model.records import JobRecord, Stage, State
from batchpipe.model.stats import Pause
from batchpipe.model.views import Moment
from batchpipe.pipeline.reason_samples import read_samples
from batchpipe.store import Store

#: How often a process says that somebody watches, in seconds.
SAY_SECONDS = 10.0


def say_that_somebody_watches(store: Store, job: JobRecord) -> None:
    """Looks then write each count that they see; else once a minute, for there may be ten thousand batches."""
    if job.stage == State.RUNNING and current_site().is_first_time("watched", job.account, seconds=SAY_SECONDS):
        with suppress(StoreUnavailable):  # a Redis that takes no writes can still be read
            store.looks.note_watched(job.account)


class Moments:
    """For one look at some jobs: what was read stays as it was."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._now: float | None = None
        self._forecasts: Forecasts | None = None
        self._pauses: dict[str, Pause | None] = {}
        self._rooms: dict[str, tuple[int, Waiting]] | None = None

    def of(self, job: JobRecord, *, files: bool = False) -> Moment:
        """The moment for one job; nothing is read of Redis for one that has ended. Raises StoreUnavailable.

        ``files``: for one job alone, as ``located`` gives it: look for samples of its errors in its results; and read
        more of its shards to foresee its end.
        """
        if job.state.ended:
            samples = read_samples(job, roots=tuple(self._settings.roots())) if files else {}
            return Moment(samples=samples)
        say_that_somebody_watches(self._store, job)
        now, pause, room = self.now(), self.pause(job.account), self._room_of(job)
        shard_room = WaitingShards(self._store) if room is not None else lambda shard: None
        if pause is not None:  # nobody sees a batch end
            return Moment(now=now, pause=pause, room=room, shard_room=shard_room)
        self._forecasts = self._forecasts or Forecasts(self._store, now)
        eta = self._forecasts.eta(job, MOST_READ if files else FEW_READ)
        forecast = self._forecasts.of(job.account, shard_room)
        return Moment(
            now=now,
            job_eta=eta_view(eta),
            shard_eta=lambda shard: eta_view(forecast.of_shard(job, shard)),
            room=room,
            shard_room=shard_room,
        )

    def of_list(self, job: JobRecord) -> Moment:
        """The same for a view without shards: some of these are looked at, as only they may be in trouble. Raises
        StoreUnavailable.
        """
        moment = self.of(job)
        foreseen = moment.job_eta is not None  # then they were looked at
        if job.stage != State.RUNNING or job.trouble or job.hold or moment.pause or moment.room or foreseen:
            return moment
        step = max(-(-job.shards // FEW_READ), 1)
        fields, within = ("trouble",), range(0, job.shards, step)
        shards = self._store.shards.of_job(job, fields=fields, bad="show", within=within)
        found = (shard for shard in shards if shard.trouble is not None and shard.stage != Stage.COLLECTED)
        return replace(moment, troubled=next(found, None))

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
