"""When jobs are likely to end: histories and shards are read, ``model/eta`` says the rest."""

from __future__ import annotations

from batchpipe.client.rooms import Delays, ShardRoom, waiting_among
from batchpipe.model.admission import Room
from batchpipe.model.eta import FORESEEN, Ahead, Eta, Forecast
from batchpipe.model.pace import NO_HISTORY, History
from batchpipe.model.records import JobRecord, State
from batchpipe.store import Store

#: Shards of a job that are read; of a larger one as many, spread over it, stand for all.
MOST_READ = 1_000
#: The same for a list of jobs.
FEW_READ = 20


class Forecasts:
    """For one look at some jobs, at one moment."""

    def __init__(self, store: Store, now: float) -> None:
        self._store, self._now = store, now
        self._known: dict[str, bool] = {}
        self._rooms: dict[str, list[Room]] = {}

    def of(self, account: str, waiting: ShardRoom) -> Forecast:
        """For the batches of an account; ``waiting``: how its shards wait for room. It raises StoreUnavailable."""

        def history(model: str | None) -> History:
            return self._store.paces.of(account, model).took if self._speaks(account) else NO_HISTORY

        return Forecast(self._now, history, Delays(lambda: self._rooms_of(account), waiting, history))

    def eta(self, job: JobRecord, most: int = MOST_READ) -> Eta | None:
        """When the job's batches have ended; None if it has none, or nothing can be said. Raises StoreUnavailable."""
        if job.state is not State.RUNNING or job.hold is not None or not self._speaks(job.account):
            return None
        step = max(-(-job.shards // most), 1)
        read = range(0, job.shards, step)
        shards = list(self._store.shards.of_job(job, fields=FORESEEN, bad="show", within=read))
        ahead = Ahead(self.of(job.account, waiting_among(self._store, shards)), job)
        for shard in shards:
            ahead.add(shard, step)
        return ahead.eta()

    def _rooms_of(self, account: str) -> list[Room]:
        if account not in self._rooms:
            self._rooms[account] = self._store.admission.rooms(account)
        return self._rooms[account]

    def _speaks(self, account: str) -> bool:
        """Whether any batch of the account has ended lately: else nothing more is read."""
        if account not in self._known:
            self._known[account] = bool(self._store.paces.models(account, 1))
        return self._known[account]
