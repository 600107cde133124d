"""The script that ends a turn claims the next one of the same visit, if its time has come."""

from __future__ import annotations

from typing import Any

from batchpipe.model.admission import Waiting
from batchpipe.model.records import JOB, Move, ShardRecord, Stage, State
from batchpipe.store import ClaimDenied, Following, JobLease, RoomWanted, ShardLease, Store
from tests.contract.store.protocol import DEADLINE, LEASE, claim, claim_job, granted, new_job, planned, shard

CREATE = Following((Stage.UPLOADED.value,), DEADLINE)
MERGE = Following((State.FINALIZING.value,), DEADLINE)
UPLOAD = Following((Stage.PLANNED.value,), DEADLINE)
ROOM = RoomWanted({"tokens": 400, "batches": 1, "creations": 1, "uploads": 1}, {"batches": 1})


def twice(store: Store) -> None:
    """From now on each script is repeated, as the client does after a lost answer."""
    real = store.connection.run

    def run(name: str, keys: Any, *args: Any) -> Any:
        real(name, keys, *args)
        return real(name, keys, *args)

    store.connection.run = run  # type: ignore[method-assign]


def begun(store: Store) -> ShardLease:
    """The lease of the only shard of a new job, which asked for room with its plan."""
    job = new_job()
    store.jobs.submit(job)
    lease, only = claim_job(store, job.id), ShardRecord(job=job.id, index=0, epoch=1, rows=2, file="f")
    store.leases.plan(lease, {}, [only], ["m"], following=UPLOAD, room=ROOM)
    assert isinstance(lease.following, ShardLease)
    return lease.following


def held(store: Store) -> dict[str, int]:
    return {room.kind: room.held for room in store.admission.rooms("default")}


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
    assert [(one.stage, one.ok) for one in merge.shards or []] == [(Stage.COLLECTED, 2)]  # it need not read it
    assert store.leases.finish(merge, State.SUCCEEDED, {"ok": 2}) is State.SUCCEEDED
    assert merge.job.ok == 2


def test_a_job_of_one_shard_is_planned_with_the_claim_of_that(store: Store) -> None:
    """One of two gives no lease: they are work for several workers."""
    for count in (1, 2):
        job = new_job()
        store.jobs.submit(job)
        lease = claim_job(store, job.id)
        shards = [ShardRecord(job=job.id, index=index, epoch=1, rows=2, file="f") for index in range(count)]
        events = [("planned", {"shards": count})]
        assert store.leases.plan(lease, {}, shards, ["m"], following=UPLOAD, events=events) == (count, 0)
        assert store.events.read(job.id)[-1]["shards"] == count
        if count == 1:
            assert isinstance(lease.following, ShardLease)
            assert (lease.following.shard.rows, lease.following.job.stage) == (2, State.RUNNING)
        else:
            assert lease.following is None


def test_a_repeated_end_of_a_turn_has_the_same_claim(store: Store) -> None:
    """After a lost answer the client repeats the script; what was claimed by it must not stand in its way."""
    job_id = planned(store)
    twice(store)
    first = ended(store, job_id, Move(stage=Stage.UPLOADED), CREATE)
    assert isinstance(first.following, ShardLease)
    assert first.following.shard.tries == 1
    store.leases.advance(first.following, Move(stage=Stage.COLLECTED), tries="reset", merge_ids=["m"], following=MERGE)
    merge = first.following.following
    assert isinstance(merge, JobLease)
    assert merge.job.tries == 1
    assert isinstance(claim(store, job_id, JOB, State.FINALIZING, epoch=2), ClaimDenied)


def test_a_plan_gives_room_to_its_only_shard_once(store: Store) -> None:
    """Its upload call is counted, so that its file is known even if the worker dies within it."""
    twice(store)
    lease = begun(store)
    assert (lease.admitted, shard(store, lease.job.id).uploads) == (True, 1)
    assert held(store) == {"tokens": 400, "batches": 1, "creations": 1, "uploads": 1}


def test_a_plan_takes_no_room_that_is_not_there(store: Store) -> None:
    """Nor does it put the shard into the line: its turn does that, and says what it waits for."""
    first, second = begun(store), begun(store)
    assert (first.admitted, second.admitted) == (True, False)
    found = shard(store, second.job.id)
    assert (found.uploads, found.waits_since, found.admitted_at) == (0, None, None)
    assert isinstance(store.admission.admit(second, ROOM.needs, ROOM.limits, uploads=1), Waiting)
    assert held(store)["batches"] == 1


def test_a_job_that_sends_nothing_more_is_given_no_room(store: Store) -> None:
    job = new_job(send_no_more=True)
    store.jobs.submit(job)
    lease, only = claim_job(store, job.id), ShardRecord(job=job.id, index=0, epoch=1, rows=2, file="f")
    store.leases.plan(lease, {}, [only], ["m"], following=UPLOAD, room=ROOM)
    assert isinstance(lease.following, ShardLease)
    assert lease.following.admitted is False


def test_an_intent_records_with_it_what_its_turn_has_done_before(store: Store) -> None:
    """Both or neither, and once, though the script is repeated; the lease goes on."""
    lease = begun(store)
    lease.unrecorded = Move(
        stage=Stage.UPLOADED, changes={"file_id": "file-1"}, events=[("uploaded", {"shard": 0, "file_id": "file-1"})]
    )
    twice(store)
    store.leases.record_intent(lease, admitted=True)
    assert lease.is_recorded()
    found = shard(store, lease.job.id)
    assert (found.stage, found.file_id, found.tries, found.calls) == (Stage.UPLOADED, "file-1", 1, [lease.token])
    assert None not in (found.intent_at, found.uploaded_at)
    assert [event["event"] for event in store.events.read(lease.job.id)].count("uploaded") == 1
    assert store.unanswered.count("default") == 1
    store.leases.save(lease, {"backoff": 0})


def test_an_intent_that_is_refused_records_nothing(store: Store) -> None:
    """The turn ends as that of the step before."""
    without, held_back = begun(store), begun(store)
    for lease in (without, held_back):
        lease.unrecorded = Move(stage=Stage.UPLOADED, changes={"file_id": "file-1"})
    store.connection.client.hset(store.connection.job_key(without.job.id), "send_no_more", "1")
    assert store.leases.record_intent(without, admitted=True).held
    assert store.leases.record_intent(held_back, admitted=True).no_hold  # the other one has all the room
    for lease in (without, held_back):
        found = shard(store, lease.job.id)
        assert (found.stage, found.file_id, found.intent_at) == (Stage.PLANNED, None, None)
        assert not lease.is_recorded()
