"""The budget of an account's reads at the provider: how polls see it, and how it is kept by what else turns read.

Pages of lists, batches, and what is known of a file count. To fetch a file does not, nor to ask its length first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from msgspec.structs import replace

from batchpipe.config.settings import Settings
from batchpipe.model.lateness import WELL
from batchpipe.model.provider import Batch, Provider, StoredFile
from batchpipe.model.records import Move, ShardRecord, Stage
from batchpipe.pipeline.steps.poll import SLOT_KEPT_SECONDS, Slot, TakeSlot
from batchpipe.store import Store

#: A turn sleeps so long for its slot, in seconds; where that is further away, it comes back then.
LONGEST_SLEEP_SECONDS = 5.0
#: Files of a page of their list.
_PAGE = 100

Sleep = Callable[[float], None]


def slots_for(store: Store, settings: Settings, account: str, shard: ShardRecord) -> TakeSlot:
    """How this shard's poll takes its slots. It may raise StoreUnavailable, SettingsError."""

    def take(what: str, may_park: bool) -> Slot:
        park = (settings.polls_in_flight, shard.snapshot_at) if may_park and shard.snapshot_at is not None else None
        rate = settings.account(account).looks_per_second
        verdict, wait = store.accounts.take_rate_token(account, per_second=rate, what=what, park=park)
        return Slot(wait, booked=verdict == "slot", parked=verdict == "parked")

    return take


class NoSlot(Exception):
    """The account has no read left for this turn. ``wait``: seconds until it has; ``slot_at``: its slot, if booked."""

    def __init__(self, wait: float, slot_at: float | None) -> None:
        super().__init__(f"the next read is in {wait:.1f} s")
        self.wait, self.slot_at = wait, slot_at

    def later(self, shard: ShardRecord) -> Move:
        """The turn comes back then, and nothing else has changed."""
        kept = {name: getattr(shard, name) for name in WELL}
        return Move(stage=Stage(shard.stage), after=self.wait, changes={**kept, "slot_at": self.slot_at})


class TurnReads:
    """The slots of one turn of a shard. What it reads first has its slot, and what it reads after that is paid for
    later: so it gets on, whatever there is to read. Raises NoSlot."""

    def __init__(
        self, store: Store, settings: Settings, account: str, shard: ShardRecord, *, sleep: Sleep, at_once: bool = False
    ) -> None:
        """``at_once``: also the first is paid for later. It follows a call that has just been made for a fresh job."""
        self._take = slots_for(store, settings, account, shard)
        self._store, self._sleep, self._slot_at = store, sleep, shard.slot_at
        self._begun = at_once
        self._took_booked = False

    def __call__(self) -> None:
        if self._begun:
            self._take("news", False)
            return
        now = self._store.now()
        left = self._slot_at - now if self._slot_at is not None else -SLOT_KEPT_SECONDS
        if self._slot_at is not None and left > LONGEST_SLEEP_SECONDS:
            raise NoSlot(left, self._slot_at)
        if left > -SLOT_KEPT_SECONDS:
            self._took_booked, wait = True, max(left, 0.0)
        else:
            slot = self._take("poll", False)
            wait = slot.wait
            if wait > LONGEST_SLEEP_SECONDS:
                raise NoSlot(wait, now + wait if slot.booked else None)
        if wait > 0:
            self._sleep(wait)
        self._begun = True

    def paid(self, move: Move) -> Move:
        """The end of the turn: a slot that was booked serves one."""
        return replace(move, changes={"slot_at": None, **move.changes}) if self._took_booked else move


def page_reads(store: Store, settings: Settings, account: str, sleep: Sleep) -> Callable[[], None]:
    """The slots of what a walk reads beside its pages: like those, before what polls have booked."""

    def take() -> None:
        rate = settings.account(account).looks_per_second
        _, wait = store.accounts.take_rate_token(account, per_second=rate, what="look")
        if wait > 0:
            sleep(wait)

    return take


class _Budgeted:
    """A provider of which each read takes its slot first."""

    def __init__(self, api: Provider, take: Callable[[], None]) -> None:
        self._api, self._take = api, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def retrieve(self, batch_id: str) -> Batch:
        self._take()
        return self._api.retrieve(batch_id)

    def file_status(self, file_id: str) -> str | None:
        self._take()
        return self._api.file_status(file_id)

    def file_name(self, file_id: str) -> str | None:
        self._take()
        return self._api.file_name(file_id)

    def iter_files(self, since: float) -> Iterator[StoredFile]:
        for number, file in enumerate(self._api.iter_files(since)):
            if number % _PAGE == 0:
                self._take()
            yield file


def budgeted(api: Provider, take: Callable[[], None]) -> Provider:
    """The same provider, but ``take`` is called before each read."""
    return cast(Provider, _Budgeted(api, take))
