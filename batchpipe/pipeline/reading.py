"""The budget of an account's reads at the provider, as polls see it."""

from __future__ import annotations

from batchpipe.config.settings import Settings
from batchpipe.model.records import ShardRecord
from batchpipe.pipeline.steps.poll import Slot, TakeSlot
from batchpipe.store import Store


def slots_for(store: Store, settings: Settings, account: str, shard: ShardRecord) -> TakeSlot:
    """How this shard's poll takes its slots. It may raise StoreUnavailable, SettingsError."""

    def take(what: str, may_park: bool) -> Slot:
        park = (settings.polls_in_flight, shard.snapshot_at) if may_park and shard.snapshot_at is not None else None
        rate = settings.account(account).looks_per_second
        verdict, wait = store.accounts.take_rate_token(account, per_second=rate, what=what, park=park)
        return Slot(wait, booked=verdict == "slot", parked=verdict == "parked")

    return take
