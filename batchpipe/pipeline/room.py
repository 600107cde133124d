"""Room at the provider: a shard is sent once there is some for it, and waits without a message until then.

What holds room and who is next is decided in Redis (``store.admission``); here turns and sweeps ask, and publish what
was granted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from batchpipe.config.settings import Settings
from batchpipe.errors import RecordUnreadable, StoreUnavailable
from batchpipe.model.admission import Waiting, needs_of
from batchpipe.model.records import JobRecord, Move, ShardRecord, Stage
from batchpipe.model.room import parked
from batchpipe.pipeline.overdue import republish_or_set_aside
from batchpipe.pipeline.runner import Runner
from batchpipe.store import RoomWanted, ShardLease, Store, log_once
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: Grants that are published in one go; what is left is due, and found by the next turn or sweep.
MOST_PUBLISHED = 100
#: Pause between two comparisons of what an account's shards hold with the records, over all processes.
REBUILD_SECONDS = 60.0
#: The part of a shard's rows that must have been answered for its tokens to teach anything.
MOST_ANSWERED = 0.9


class NoRoom(Exception):
    """A create call must not be sent: its shard holds no room, and asks for some first."""


def wait_for_room(lease: ShardLease, store: Store, settings: Settings, *, uploads: int = 0) -> Move | None:
    """Reserve room for a shard, or queue it: then the turn ends with this Move. ``uploads``: the number of its upload
    calls with the one that follows, recorded if there is room. Raises LeaseLost, StoreUnavailable.
    """
    shard = lease.shard
    room = room_for(lease.job, shard, store, settings)
    found = store.admission.admit(lease, room.needs, room.limits, uploads=uploads)
    if isinstance(found, Waiting):
        return parked(shard, found)
    lease.shard = shard.evolve(needs=dict(room.needs))  # as the script has recorded it
    return None


def room_for(job: JobRecord, shard: ShardRecord, store: Store, settings: Settings) -> RoomWanted:
    """What a shard asks for. Raises StoreUnavailable, SettingsError (the account has no settings)."""
    needs = needs_of(shard.bytes, store.admission.lately_ratio(shard.model), upload=shard.stage == Stage.PLANNED)
    return RoomWanted(needs, settings.account(job.account).limits(shard.model))


def pass_on_room(runner: Runner, shard: ShardRecord, move: Move, granted: int) -> None:
    """After a turn: what it has freed, or asked for in vain, may have been granted to others. ``granted``: what its end
    has granted.
    """
    if move.stage == Stage.COLLECTED:
        _note_tokens(runner.store, shard, move.changes)
    if granted or move.parked:
        publish_granted(runner)


def _note_tokens(store: Store, shard: ShardRecord, collected: Mapping[str, Any]) -> None:
    """What the bytes of a collected shard came to in tokens. Only estimates rest on it, so trouble is passed over."""
    tokens, ok = (collected.get("usage") or {}).get("input_tokens"), collected.get("ok") or 0
    if tokens and shard.rows and ok >= MOST_ANSWERED * shard.rows:
        with suppress(StoreUnavailable):
            store.admission.observe(shard.model, round(shard.bytes * ok / shard.rows), tokens)


def publish_granted(runner: Runner) -> None:
    """Publish the shards that the last scripts have granted room. Losing one loses a moment: it is due."""
    with suppress(StoreUnavailable):
        for job_id, index in runner.store.admission.take_granted(MOST_PUBLISHED):
            republish_or_set_aside(runner, job_id, index, "overdue")


def grant_rooms(runner: Runner) -> None:
    """For the sweep: grant what time has freed, and put right what is held. Raises StoreUnavailable."""
    publish_granted(runner)
    for account in runner.store.admission.accounts():
        with about(account=account):
            try:
                grant_account(runner, account)
            except RecordUnreadable as error:  # the other accounts and overdue work must not wait for this one
                log_once(error)


def grant_account(runner: Runner, account: str) -> None:
    """The same for one account. Raises RecordUnreadable, StoreUnavailable."""
    admission = runner.store.admission
    if admission.begin_rebuild(account, REBUILD_SECONDS):
        found = admission.rebuild(account)
        if found.dropped or found.corrected:
            words = "account %r: %d reservations that nothing needs were dropped, %d sums put right"
            logger.warning(words, account, found.dropped, found.corrected, extra={"event": "rooms_rebuilt"})
    for job_id, index in admission.grant(account):
        republish_or_set_aside(runner, job_id, index, "overdue")
