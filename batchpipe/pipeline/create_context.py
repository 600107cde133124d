"""What the create step may do with its shard's record: the implementation of its ``CreateActions`` under a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchpipe.errors import OnHold
from batchpipe.model.provider import Batch
from batchpipe.model.records import ShardRecord, Status
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.steps.poll import Pace
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
        self.first_look = 0.0  #: seconds from the settled batch to the first look at it

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
        news = self._runner.store.leases.record_intent(self._lease)
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
        after = self._until_first_look(batch)
        settled = self._runner.store.shards.settle(
            self._shard,
            batch.id,
            token=self._lease.token,
            after=after,
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
        self.first_look = 0.0 if settled.news.cancel else after
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
