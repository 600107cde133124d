"""Numbers about all jobs of one Redis, for metrics: read at each call, but for what is costly to count."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from batchpipe.model.admission import Room
from batchpipe.model.stats import OpenShards, Stats
from batchpipe.store import ModelPace, Store
from batchpipe.telemetry.counters import OTHER

#: How long the count of the open shards is kept, so that many callers cost no more than one.
COUNT_SECONDS = 10.0
#: Accounts with batches created within this time are included, though this host may not have their keys.
RECENT_SECONDS = 7 * 86_400.0
#: Accounts whose rooms are read, those in use last.
MOST_ACCOUNTS = 50
#: Models of an account whose turnarounds are measured: the latest to have had one.
MOST_MODELS = 20
#: What providers call models. Rows name them, so a name may be anything, and stands in front of all who read metrics.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{0,99}")
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Measures:
    """What there was to read at one moment."""

    stats: Stats
    open_shards: OpenShards
    paused_seconds: dict[str, float]  #: account -> how much longer it is paused; 0: it is in use
    rooms: list[Room]  #: what is held at the providers, and what waits; of accounts that were in use within two days
    counts: dict[str, float]  #: what all processes have counted so far; see ``telemetry.counters``
    late: dict[str, float] = field(default_factory=dict)  #: account -> batches in flight that are said to be late
    turnarounds: Turnarounds = field(default_factory=lambda: Turnarounds())


@dataclass
class Turnarounds:
    """How long batches took in the last days, in seconds by (account, model, quantile); without what is not known."""

    took: dict[tuple[str, ...], float] = field(default_factory=dict)
    queued: dict[tuple[str, ...], float] = field(default_factory=dict)  #: until they began to run
    batches: dict[tuple[str, ...], float] = field(default_factory=dict)  #: how many, by (account, model)

    def add(self, account: str, model: str, pace: ModelPace) -> None:
        self.batches[account, model] = pace.took.ended
        for kind, history in ((self.took, pace.took), (self.queued, pace.queued)):
            for quantile in QUANTILES:
                if (seconds := history.quantile(quantile)) is not None:
                    kind[account, model, str(quantile)] = round(seconds, 1)


class Meter:
    """Reads the numbers. ``accounts``: names that are included in any case; ``clock`` counts seconds."""

    def __init__(
        self,
        store: Callable[[], Store],
        accounts: Callable[[], Iterable[str]] = tuple,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self._accounts, self._clock = store, accounts, clock
        self._lock = threading.Lock()
        self._counted: tuple[Store, float, OpenShards] | None = None

    def read(self) -> Measures:
        """Raises StoreUnavailable, after one short try: whoever reads metrics waits for seconds only."""
        store = self._open()
        store.ping()
        stats, open_shards = store.counters.stats(), self._count_open_shards(store)
        accounts = sorted({"default", *self._accounts(), *store.accounts.creating(stats.now - RECENT_SECONDS)})
        paused = {name: pause.seconds if (pause := store.accounts.pause_of(name)) else 0.0 for name in accounts}
        late = {name: float(store.paces.late(name)) for name in accounts}
        turnarounds = self._turnarounds(store, accounts)
        return Measures(stats, open_shards, paused, _rooms(store), store.counters.read(), late, turnarounds)

    @staticmethod
    def _turnarounds(store: Store, accounts: Iterable[str]) -> Turnarounds:
        found = Turnarounds()
        for account in accounts:
            for model in store.paces.models(account, MOST_MODELS):
                if not model or _NAME.fullmatch(model):
                    found.add(account, model or OTHER, store.paces.of(account, model))
        return found

    def _count_open_shards(self, store: Store) -> OpenShards:
        with self._lock:  # other callers wait for the count that is under way
            now = self._clock()
            if self._counted is not None and self._counted[0] is store:
                _, at, counted = self._counted
                if 0 <= now - at < COUNT_SECONDS:
                    return counted
            self._counted = store, now, store.counters.count_open_shards()
            return self._counted[2]


def _rooms(store: Store) -> list[Room]:
    return [room for account in store.admission.accounts()[-MOST_ACCOUNTS:] for room in store.admission.rooms(account)]
