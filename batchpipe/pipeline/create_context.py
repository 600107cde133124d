"""What the create step may do with its shard's record: the implementation of its ``CreateActions`` under a lease."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from batchpipe.errors import OnHold, Paused, Refused, Unavailable
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import LONGEST_PAUSE, ShardRecord, Status
from batchpipe.pipeline.create_actions import Settled
from batchpipe.pipeline.noted_walks import NotedWalk, decode_walk, telling_walk
from batchpipe.pipeline.reading import budgeted, page_reads
from batchpipe.pipeline.room import NoRoom
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.search_records import SearchRecords, settle
from batchpipe.pipeline.steps.poll import Pace
from batchpipe.pipeline.sweep import is_time_for_whole, walk_for_all
from batchpipe.pipeline.unanswered import Search
from batchpipe.store import ShardLease

#: After a walk that failed nobody else walks for so long: who has failed tries again, and sweeps do.
FAILED_SECONDS = 15.0
#: So long nobody asks for a list that the provider does not have.
REFUSED_SECONDS = 50.0
#: Turns a second, at most, of all shards that wait for a walk of somebody else, should its end not be told.
TURNS_PER_SECOND = 20.0
#: How many shards that were cleared together come back in a second.
CLEARED_PER_SECOND = 50.0
LONGEST_SPREAD_SECONDS = 30.0


class CreateContext:
    """What the create step may do with its shard's record."""

    def __init__(self, runner: Runner, lease: ShardLease, api: Provider) -> None:
        self._runner, self._lease, self._shard, self._api = runner, lease, lease.shard, api
        self.grace_seconds = runner.settings.create_grace_seconds
        self.lease_seconds = runner.settings.lease_seconds
        self._slack: float | None = None
        self.unseen_seconds = runner.settings.unseen_seconds
        self.refusal_seconds = runner.settings.refusal_wait_seconds
        self._account = lease.job.account
        account = runner.settings.account(self._account)
        self.lists_batches, self.echoes_metadata = account.lists_batches, account.echoes_metadata
        self.resend_unanswered = account.resend_unanswered
        self.first_look = 0.0  #: seconds from the settled batch to the first look at it
        self._settled: str | None = None

    def now(self) -> float:
        return self._runner.store.now()

    def ahead(self) -> float:
        if self._slack is None:  # asked for each batch of a list
            self._slack = self._runner.store.connection.clock().slack
        return self._slack

    def leapt(self, since: float) -> bool:
        clock = self._runner.store.connection.clock()
        # waiting for a grace period, or for the next sweep, is not a leap of the clock
        return clock.leap_at > since and clock.leap_by > max(2 * self.lease_seconds, 2 * self.grace_seconds)

    # -- the list --------------------------------------------------------------------------------------------------

    def walk(self, after: float, since: float) -> NotedWalk | Settled | None:
        known = self._noted(after, since)
        if known is not None:
            return known
        records = self._runner.store.unanswered
        failed_at, refused = records.failed_walk(self._account)
        if refused and 0 <= self.now() - failed_at < REFUSED_SECONDS:
            raise Refused(refused)
        if not refused and self.now() - failed_at < FAILED_SECONDS and not self._shard.backoff:
            return None
        try:
            walked = self._walk(since)
        except Refused as error:
            records.note_failed_walk(self._account, refused=str(error))
            raise
        except (Unavailable, Paused):
            records.note_failed_walk(self._account)
            raise
        if self._settled is not None:
            return Settled(here=self._settled == "ok")
        return self._noted(after, since) if walked else None

    def _noted(self, after: float, since: float) -> NotedWalk | None:
        found = map(decode_walk, self._runner.store.unanswered.walks(self._account))
        walks = [walk for walk in found if walk is not None]
        return telling_walk(walks, after=after, since=since, seen_as=self._api.identity)

    def _walk(self, since: float) -> bool:
        """Walk through the list for all shards of the account, and do there what each look does."""
        place = (self._shard.job, self._shard.index)
        records = SearchRecords(self._runner, self._account, own=place, settle_own=self._settle_own)
        reads = page_reads(self._runner.store, self._runner.settings, self._account, self._runner.sleep)
        search = Search(records, budgeted(self._api, reads), reads=True, check=self._check)
        since = min(since, records.young() or since)
        state = self._runner.store.looks.state(self._account)
        whole = is_time_for_whole(state, self.now())
        watch = state.in_flight > self._runner.settings.polls_in_flight
        walk = walk_for_all(
            self._runner, self._account, self._api, search, state, since=since, whole=whole, watch=watch
        )
        return walk is not None

    def _check(self) -> None:
        if self._settled is None:
            self._lease.check()

    def _settle_own(self, batch: Batch, sure: bool) -> str:
        verdict = self.settle(batch, sure=sure)
        self._settled = verdict if self._settled is None and verdict != "other" else self._settled
        return verdict

    def patience(self) -> float:
        waiting = self._runner.store.unanswered.count(self._account)
        return random.uniform(1.0, 1.2) * min(max(60.0, waiting / TURNS_PER_SECOND), LONGEST_PAUSE)

    def spread(self) -> float:
        waiting = self._runner.store.unanswered.count(self._account)
        return random.uniform(0.0, min((waiting - 1) / CLEARED_PER_SECOND, LONGEST_SPREAD_SECONDS))

    # -- the call --------------------------------------------------------------------------------------------------

    def intend(self, identity: str) -> bool:
        # it is made before half of the lease is over
        seconds = self.lease_seconds / 2 + self._runner.settings.control_timeout_seconds
        news = self._runner.store.leases.record_intent(
            self._lease, seconds=seconds, identity=identity, admitted=not self._shard.calls
        )  # an older call has sent what it held
        if news.no_hold:
            raise NoRoom
        if news.held:
            self._runner.held(self._lease.job)
            raise OnHold("the job sends nothing more: a batch of it was cancelled at the provider", after=1.0)
        cancel = news.cancel
        # whatever goes wrong from here on: there may be a batch
        self._lease.shard = self._shard.evolve(intent_at=self._shard.intent_at or self.now())
        return cancel

    def withdraw(self) -> None:
        self._runner.store.shards.withdraw_call(self._shard, self._lease.token)
        self._lease.shard = self._shard

    def too_late_to_call(self) -> bool:
        return self._lease.too_late_to_call()

    def record_named(self, batch_ids: Mapping[str, bool]) -> None:
        self._runner.store.shards.record_named_batches(self._shard, batch_ids)

    def known(self, batch_ids: Sequence[str]) -> dict[str, ShardRecord]:
        return self._runner.store.shards.of_batches(self._account, batch_ids)

    def settle(self, batch: Batch, *, sure: bool = False) -> str:
        self._lease.stop()
        after = self._until_first_look(batch)
        settled = settle(self._runner, self._shard, batch, token=self._lease.token, sure=sure, after=after)
        self.first_look = 0.0 if settled.told else after
        return settled.verdict

    def _until_first_look(self, batch: Batch) -> float:
        """The answer to the create call is a look: nothing is to be seen for the shortest pause. An older batch, which
        was found, is looked at at once, and so is one that must be cancelled.
        """
        job, shortest = self._lease.job, self._runner.settings.poll_min_seconds
        if batch.status in Status.FINAL or job.cancel or job.send_no_more or self._shard.landing:
            return 0.0
        if batch.created_at is None or abs(self.now() - batch.created_at) > shortest:
            return 0.0
        return Pace(shortest, self._runner.settings.poll_max_seconds).after(0.0)
