"""What the create step may do with its shard's record: the implementation of its ``CreateActions`` under a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchpipe.errors import OnHold
from batchpipe.model.provider import Batch
from batchpipe.model.records import ShardRecord
from batchpipe.pipeline.room import NoRoom
from batchpipe.pipeline.runner import Runner
from batchpipe.store import ShardLease


class CreateContext:
    """What the create step may do with its shard's record."""

    def __init__(self, runner: Runner, lease: ShardLease) -> None:
        self._runner, self._lease, self._shard = runner, lease, lease.shard
        self.grace_seconds = runner.settings.create_grace_seconds
        self.lease_seconds = runner.settings.lease_seconds
        self._slack: float | None = None
        self.unseen_seconds = runner.settings.unseen_seconds
        self.refusal_seconds = runner.settings.refusal_wait_seconds
        account = runner.settings.account(lease.job.account)
        self.lists_batches, self.echoes_metadata = account.lists_batches, account.echoes_metadata
        self.resend_unanswered = account.resend_unanswered

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

    def intend(self) -> bool:
        # an older call has sent what it held
        news = self._runner.store.leases.record_intent(self._lease, admitted=not self._shard.calls)
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
        return self._runner.store.shards.of_batches(self._lease.job.account, batch_ids)

    def settle(self, batch: Batch, *, sure: bool = False) -> str:
        self._lease.stop()
        settled = self._runner.store.shards.settle(
            self._shard,
            batch.id,
            token=self._lease.token,
            after=0.0,
            sure=sure,
            made_at=batch.created_at,
            changes={
                "status": batch.status,
                "counts": batch.counts,
                "snapshot_at": self._runner.store.now(),
                "backoff": 0,
            },
        )
        if settled.verdict in ("ok", "late"):
            event = ("created", {"batch_id": batch.id, "status": batch.status})
            self._runner.log(self._shard.job, [event], shard=self._shard.index)
        if settled.news.republish:
            self._runner.republish(self._shard.job, self._shard.index)
            return "known"  # the new chain goes on
        return settled.verdict
