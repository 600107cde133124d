"""The script that ends a turn claims the next one of the same visit, if its time has come."""

from __future__ import annotations

from typing import Any

from batchpipe.model.records import JOB, Move, ShardRecord, Stage, State
from batchpipe.store import ClaimDenied, Following, JobLease, ShardLease, Store
from tests.contract.store.protocol import DEADLINE, LEASE, claim, claim_job, granted, new_job, planned, shard

CREATE = Following((Stage.UPLOADED.value,), DEADLINE)
MERGE = Following((State.FINALIZING.value,), DEADLINE)


def ended(store: Store, job_id: str, move: Move, following: Following | None) -> ShardLease:
    """The lease of a turn that has ended so."""
    found = shard(store, job_id)
    lease = granted(claim(store, job_id, 0, found.stage))
    store.leases.advance(lease, move, tries="reset", merge_ids=["m"], following=following)
    assert isinstance(lease, ShardLease)
    return lease


def test_the_turn_that_follows_is_claimed_like_any_other(store: Store) -> None:
    """Its lease is its own: the turn before cannot write any more, and nobody else gets the record."""
    job_id = planned(store)
    before = ended(store, job_id, Move(stage=Stage.UPLOADED, changes={"file_id": "file-1"}), CREATE)
    after = before.following
    assert isinstance(after, ShardLease)
    assert (after.shard.stage, after.shard.file_id, after.shard.tries) == (Stage.UPLOADED, "file-1", 1)
    assert after.token != before.token
    assert isinstance(denied := claim(store, job_id, 0, Stage.UPLOADED), ClaimDenied)
    assert denied.why == "lease"
    assert store.leases.renew(after)[0] > LEASE - 1
    store.leases.advance(after, Move(stage=Stage.CREATED), tries="reset", merge_ids=["m"])
    assert shard(store, job_id).stage == Stage.CREATED


def test_a_visit_that_dies_with_its_claim_costs_a_lease(store: Store, clock: Any) -> None:
    """The record is due when that ends."""
    job_id = planned(store)
    ended(store, job_id, Move(stage=Stage.UPLOADED), CREATE)
    clock.advance(LEASE - 1)
    assert store.due.overdue() == []
    clock.advance(2)
    assert store.due.overdue() == [(job_id, 0)]
    assert shard(store, job_id).lost == 0
    assert granted(claim(store, job_id, 0, Stage.UPLOADED)).shard.lost == 1


def test_what_has_to_wait_or_is_published_again_is_not_claimed(store: Store) -> None:
    """Nor what is at another stage than the next turn is taken in."""
    waits, again, other = planned(store), planned(store), planned(store)
    assert ended(store, waits, Move(stage=Stage.UPLOADED, after=30), CREATE).following is None
    lease = granted(claim(store, again, 0, Stage.PLANNED))
    assert store.due.bump_epoch(again, 0, ["a", "b", "c", "d"]) is None
    news, _ = store.leases.advance(lease, Move(stage=Stage.UPLOADED), tries="reset", merge_ids=["m"], following=CREATE)
    assert (news.republish, lease.following) == (True, None)
    assert ended(store, other, Move(stage=Stage.PLANNED), CREATE).following is None
    assert isinstance(claim(store, other, 0, Stage.PLANNED), ShardLease)


def test_the_last_shard_brings_the_lease_of_its_job(store: Store) -> None:
    job_id = planned(store)
    lease = ended(store, job_id, Move(stage=Stage.COLLECTED, changes={"ok": 2}), MERGE)
    merge = lease.following
    assert isinstance(merge, JobLease)
    assert (merge.job.stage, merge.job.tries, merge.job.epoch) == (State.FINALIZING, 1, 2)
    assert store.leases.finish(merge, State.SUCCEEDED, {"ok": 2}) is State.SUCCEEDED
    assert merge.job.ok == 2


def test_a_job_of_one_shard_is_planned_with_the_claim_of_that(store: Store) -> None:
    """One of two gives no lease: they are work for several workers."""
    for count in (1, 2):
        job = new_job()
        store.jobs.submit(job)
        lease = claim_job(store, job.id)
        shards = [ShardRecord(job=job.id, index=index, epoch=1, rows=2, file="f") for index in range(count)]
        upload = Following((Stage.PLANNED.value,), DEADLINE)
        events = [("planned", {"shards": count})]
        assert store.leases.plan(lease, {}, shards, ["m"], following=upload, events=events) == (count, 0)
        assert store.events.read(job.id)[-1]["shards"] == count
        if count == 1:
            assert isinstance(lease.following, ShardLease)
            assert (lease.following.shard.rows, lease.following.job.stage) == (2, State.RUNNING)
        else:
            assert lease.following is None


def test_a_repeated_end_of_a_turn_has_the_same_claim(store: Store) -> None:
    """After a lost answer the client repeats the script; what was claimed by it must not stand in its way."""
    job_id, real = planned(store), store.connection.run

    def twice(name: str, keys: Any, *args: Any) -> Any:
        real(name, keys, *args)
        return real(name, keys, *args)

    store.connection.run = twice  # type: ignore[method-assign]
    first = ended(store, job_id, Move(stage=Stage.UPLOADED), CREATE)
    assert isinstance(first.following, ShardLease)
    assert first.following.shard.tries == 1
    store.leases.advance(first.following, Move(stage=Stage.COLLECTED), tries="reset", merge_ids=["m"], following=MERGE)
    merge = first.following.following
    assert isinstance(merge, JobLease)
    assert merge.job.tries == 1
    assert isinstance(claim(store, job_id, JOB, State.FINALIZING, epoch=2), ClaimDenied)
