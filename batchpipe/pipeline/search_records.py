"""What the search for batches of unanswered creates does with the records of an account, for turns and sweeps."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Batch
from batchpipe.model.records import ShardRecord, Status
from batchpipe.pipeline.batch_search import since_of
from batchpipe.pipeline.noted_walks import NotedWalk, encode_walk, is_unanswered
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.unanswered import Place
from batchpipe.store import Settled, When

#: Shards that the end of a walk publishes again, at most; the others come by themselves, or at the end of the next.
MOST_WOKEN = 2_000
#: Calls that were made so long ago are looked for by their own turns only: nothing makes each look go back to them.
YOUNG_SECONDS = 3_600.0
#: After so long, about, the batches of many shards that one walk has found are polled: it has shown their status, its
#: end lets polls be parked, and read one by one they would cost more than the walk.
FOUND_MANY_SECONDS = 30.0


class SearchRecords:
    """One account's. A batch of the shard ``own``, whose turn this is, is settled by ``settle_own``."""

    def __init__(
        self,
        runner: Runner,
        account: str,
        *,
        own: Place | None = None,
        settle_own: Callable[[Batch, bool], str] | None = None,
    ) -> None:
        self._runner, self._store, self._account = runner, runner.store, account
        self.own, self._settle_own = own, settle_own
        self.echoes_metadata = runner.settings.account(account).echoes_metadata
        self._ahead = runner.store.connection.clock().slack
        self._many = False

    def now(self) -> float:
        return self._store.now()

    def oldest(self) -> float | None:
        self._store.unanswered.recheck(self._account)
        self._many = self._store.unanswered.count(self._account) > self._runner.settings.polls_in_flight
        return self._since(0.0)

    def young(self) -> float | None:
        """How far back a look goes for calls that were made lately; None: there is none."""
        return self._since(self._store.now() - YOUNG_SECONDS)

    def _since(self, since: float) -> float | None:
        found = self._store.unanswered.oldest(self._account, since)
        return None if found is None else found - self._ahead - CLOCK_SLACK_SECONDS

    def unanswered(self, places: Sequence[Place]) -> Mapping[Place, ShardRecord]:
        among = self._store.unanswered.among(self._account, places)
        waiting = [place for place, waits in zip(places, among, strict=True) if waits]
        shards = zip(waiting, self._store.shards.at(waiting), strict=True)
        return {place: shard for place, shard in shards if shard is not None and is_unanswered(shard)}

    def of_files(self, file_ids: Sequence[str]) -> Sequence[Place | None]:
        return self._store.unanswered.of_files(self._account, file_ids)

    def known(self, batch_ids: Sequence[str]) -> Mapping[str, ShardRecord]:
        return self._store.shards.of_batches(self._account, batch_ids)

    def adopt(self, shard: ShardRecord, batch: Batch, *, sure: bool) -> str:
        if self._settle_own is not None and self.own == (shard.job, shard.index):
            return self._settle_own(batch, sure)
        after = FOUND_MANY_SECONDS * random.uniform(0.8, 1.2) if self._many else 0.0
        return settle(self._runner, shard, batch, token=None, sure=sure, poll_after=after).verdict

    def note_walk(self, walk: NotedWalk) -> None:
        self._store.unanswered.note_walk(self._account, encode_walk(walk))
        waiting = self._store.unanswered.awaiting_walk(self._account, 0.0, walk.begun, MOST_WOKEN)
        shards = zip(waiting, self._store.shards.at(waiting), strict=True)
        told = [p for p, s in shards if s is None or walk.reached <= since_of(s, self._ahead)]
        next_one = self._store.unanswered.awaiting_walk(self._account, walk.begun, self._store.now(), 1)
        for place in [*told, *next_one]:
            if place != self.own:
                self._runner.republish(*place, when="waiting")


def settle(
    runner: Runner,
    shard: ShardRecord,
    batch: Batch,
    *,
    token: str | None,
    sure: bool,
    after: float = 0.0,
    poll_after: float = 0.0,
) -> Settled:
    """Record a shard's batch, under its lease (``token``) or without; then let it go on, unless its holder does.
    ``after``: seconds until the holder lets it be looked at; ``poll_after``: the same where nobody holds it. What needs
    its turn at once gets it.

    Returns what ``Shards.settle`` does; the verdict known: another turn goes on with it.
    """
    event = ("created", {"batch_id": batch.id, "status": batch.status})
    settled = runner.store.shards.settle(
        shard,
        batch.id,
        token=token,
        after=after,
        sure=sure,
        made_at=batch.created_at,
        changes={
            "status": batch.status,
            "counts": batch.counts,
            "snapshot_at": runner.store.now(),
            "backoff": 0,
            **batch.times,
        },
        events=[(event[0], {"shard": shard.index, **event[1]})],
    )
    if settled.verdict in ("ok", "late"):
        runner.log(shard.job, [event], recorded=True, shard=shard.index)
    if settled.news.republish or (settled.verdict == "late" and token is None):
        if settled.news.republish or settled.told or settled.news.cancel or batch.status in Status.FINAL:
            poll_after = 0.0
        when: When = "always" if settled.news.republish else "waiting"
        runner.republish(shard.job, shard.index, when=when, after=poll_after)
        return Settled("known", told=settled.told)  # the new chain goes on
    return settled
