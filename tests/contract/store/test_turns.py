"""Claim, renew, save, advance and plan: only who holds the lease writes; on fakeredis and on a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.records import JOB, Counts, ShardRecord, Stage, State
from batchpipe.store import ClaimDenied, Lease, Store
from tests.contract.store.protocol import (
    DEADLINE,
    LEASE,
    about,
    advance,
    claim,
    claim_job,
    due_in,
    granted,
    new_job,
    planned,
    shard,
    uploaded,
)


def test_a_claim_grants_a_lease_and_moves_the_due_time_to_its_end(store: Store) -> None:
    """Sweep must not repeat what is being worked on."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert lease.seconds == about(LEASE)
    assert (lease.job.id, lease.index) == (job_id, 0)
    assert due_in(store, job_id, 0) == about(LEASE)


def test_a_lease_is_no_longer_than_the_deadline(store: Store) -> None:
    """A step with a short total deadline gets less than a whole lease."""
    job_id = planned(store)
    assert granted(claim(store, job_id, 0, Stage.PLANNED, deadline=7)).seconds == about(7)


def test_claims_are_refused_by_epoch_then_stage_then_lease_then_time(store: Store, clock: Any) -> None:
    """A message of another epoch must not wait for somebody else's lease."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert claim(store, job_id, 0, Stage.ENDED, epoch=9) == ClaimDenied("epoch")
    assert claim(store, job_id, 0, Stage.ENDED) == ClaimDenied("stage")
    held = claim(store, job_id, 0, Stage.PLANNED)
    assert (held.why, held.after) == ("lease", about(LEASE))
    advance(store, lease, Stage.PLANNED, after=100)
    early = claim(store, job_id, 0, Stage.PLANNED)
    assert (early.why, early.after) == ("early", about(100))


@pytest.mark.parametrize("epoch", [0, 2, 1_800_000_000])
def test_any_other_epoch_is_void(store: Store, epoch: int) -> None:
    """A later one too: Redis may have lost a second."""
    assert claim(store, planned(store), 0, Stage.PLANNED, epoch=epoch) == ClaimDenied("epoch")


def test_unknown_records_are_gone(store: Store) -> None:
    """A message for a job that has expired ends."""
    job_id = planned(store)
    assert claim(store, job_id, 5, Stage.PLANNED) == ClaimDenied("gone")
    assert claim(store, "job_no", JOB, State.PENDING) == ClaimDenied("gone")


@pytest.mark.parametrize(
    ("pause", "early", "granted_"),
    [(10, 1.5, True), (10, 3, False), (100, 9, True), (100, 12, False)],
)
def test_a_little_early_counts_as_due(store: Store, clock: Any, pause: float, early: float, granted_: bool) -> None:
    """Celery's countdown runs on host clocks: two seconds, or a tenth of the countdown, are allowed."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.PLANNED, after=pause)
    clock.advance(pause - early)
    assert isinstance(claim(store, job_id, 0, Stage.PLANNED), Lease) is granted_


def test_a_vanished_holder_is_counted_as_lost_not_as_a_try(store: Store, clock: Any) -> None:
    """Its try was counted when it claimed; machines may die for hours."""
    job_id = planned(store)
    for expected in [(1, 0), (1, 1), (1, 2)]:
        claim(store, job_id, 0, Stage.PLANNED)
        found = shard(store, job_id)
        assert (found.tries, found.lost) == expected
        clock.advance(LEASE + 1)


@pytest.mark.parametrize(("tries", "expected"), [("keep", (2, 0)), ("refund", (1, 0)), ("reset", (1, 0))])
def test_tries_are_kept_refunded_or_reset(store: Store, tries: str, expected: tuple[int, int]) -> None:
    """Unforeseen trouble counts, foreseen trouble does not, and progress forgives."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.PLANNED, tries=tries)
    claim(store, job_id, 0, Stage.PLANNED)
    found = shard(store, job_id)
    assert (found.tries, found.lost) == expected


def test_reset_forgives_lost_leases_and_a_new_stage_begins_at_nought(store: Store, clock: Any) -> None:
    """Counters belong to a stage."""
    job_id = planned(store)
    claim(store, job_id, 0, Stage.PLANNED)
    clock.advance(LEASE + 1)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.UPLOADED, tries="keep")
    found = shard(store, job_id)
    assert (found.stage, found.tries, found.lost, found.pubs) == (Stage.UPLOADED, 0, 0, 0)


def test_a_repeated_claim_is_the_same_claim(store: Store) -> None:
    """After a lost answer the client repeats it with its token: no try is counted twice, no lease stands in its way."""
    job_id = planned(store)
    args = (store.connection.prefix, job_id, 1, ",planned,", "", "token-1", LEASE, DEADLINE, DEADLINE, f"{job_id}/0")
    assert store.connection.run("claim", store.connection.keys(job_id, 0), *args)[0] == "ok"
    assert store.connection.run("claim", store.connection.keys(job_id, 0), *args)[0] == "ok"
    assert shard(store, job_id).tries == 1


def test_a_job_is_claimed_like_a_shard(store: Store) -> None:
    """The first claim makes it `preparing`, and moves it in the lists."""
    job = new_job()
    store.jobs.submit(job)
    claim_job(store, job.id)
    found = store.jobs.get(job.id)
    assert (found.stage, found.tries) == (State.PREPARING, 1)
    assert found.preparing_at == about(store.now())
    assert store.jobs.newest(state=State.PENDING) == []


def test_renewals_end_at_the_deadline(store: Store, clock: Any) -> None:
    """A dripping download cannot keep its lease for ever."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED, deadline=100))
    clock.advance(50)
    assert store.leases.renew(lease)[0] == about(50)
    assert due_in(store, job_id, 0) == about(50)
    clock.advance(49)
    assert store.leases.renew(lease)[0] == about(1)
    clock.advance(2)
    with pytest.raises(LeaseLost):
        store.leases.renew(lease)


def test_a_renewal_makes_the_lease_whole_again(store: Store, clock: Any) -> None:
    """A long transfer goes on for many leases."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    clock.advance(40)
    assert store.leases.renew(lease)[0] == about(LEASE)
    clock.advance(40)
    assert claim(store, job_id, 0, Stage.PLANNED).why == "lease"


def test_save_writes_fields_and_keeps_the_lease(store: Store) -> None:
    """None removes a field."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    store.leases.save(lease, {"file_id": "file-1", "counts": Counts(total=3)})
    store.leases.save(lease, {"file_id": None})
    found = shard(store, job_id)
    assert (found.file_id, found.counts.total, found.token) == (None, 3, lease.token)


@pytest.mark.parametrize("late", [True, False], ids=["its lease ended", "another has claimed"])
def test_who_lost_the_lease_cannot_write(store: Store, clock: Any, late: bool) -> None:
    """Neither after its end nor under the lease of another."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    clock.advance(LEASE + 1)
    if not late:
        claim(store, job_id, 0, Stage.UPLOADED)
    before = shard(store, job_id)
    writes: list[Callable[[], object]] = [
        lambda: store.leases.renew(lease),
        lambda: store.leases.save(lease, {"file_id": "x"}),
        lambda: store.leases.record_intent(lease),
        lambda: advance(store, lease, Stage.CREATED, batch_id="x"),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert shard(store, job_id) == before


def test_who_lost_the_job_cannot_plan_finish_close_or_defer(store: Store, clock: Any) -> None:
    """A prepare or merge that thaws late changes nothing."""
    job = new_job()
    store.jobs.submit(job)
    lease = claim_job(store, job.id)
    clock.advance(LEASE + 1)
    writes: list[Callable[[], object]] = [
        lambda: store.leases.plan(lease, {}, [], ["m"]),
        lambda: store.leases.finish(lease, State.SUCCEEDED, {}),
        lambda: store.leases.close_job(lease),
        lambda: store.leases.defer(lease, 1.0, {}, tries="keep"),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    assert store.jobs.get(job.id).stage == State.PREPARING


def test_advance_ends_the_turn_with_stage_fields_and_times(store: Store) -> None:
    """due is next_at and one margin."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.UPLOADED, after=30, file_id="file-1")
    found = shard(store, job_id)
    assert (found.stage, found.file_id, found.token, found.wait) == (Stage.UPLOADED, "file-1", None, 30)
    assert found.uploaded_at == about(store.now())
    assert found.next_at == about(store.now() + 30)
    assert due_in(store, job_id, 0) == about(30 + LEASE)


def test_a_repeated_advance_changes_nothing_more(store: Store) -> None:
    """Counting down the open shards twice would start merge too soon."""
    job_id = planned(store, 3)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    advance(store, lease, Stage.COLLECTED)
    assert advance(store, lease, Stage.COLLECTED)[1] == 0
    assert store.jobs.get(job_id).open == 2


def test_the_last_collected_shard_finalizes_the_job_once(store: Store) -> None:
    """It answers the epoch under which its caller publishes merge; the job is due, in case the caller crashes."""
    job_id = planned(store, 2)
    leases = [granted(claim(store, job_id, index, Stage.PLANNED)) for index in range(2)]
    assert advance(store, leases[0], Stage.COLLECTED)[1] == 0
    assert (store.jobs.get(job_id).stage, due_in(store, job_id, JOB)) == (State.RUNNING, None)
    epoch = advance(store, leases[1], Stage.COLLECTED)[1]
    job = store.jobs.get(job_id)
    assert (job.stage, job.epoch, job.open, job.task_ids) == (State.FINALIZING, epoch, 0, ["merge-1"])
    assert epoch > 0
    assert due_in(store, job_id, JOB) == about(LEASE)
    assert [due_in(store, job_id, index) for index in range(2)] == [None, None]
    assert isinstance(claim(store, job_id, JOB, State.FINALIZING, epoch=epoch), Lease)


def test_a_running_job_is_not_due_its_shards_stand_for_it(store: Store) -> None:
    """Planning takes it from the due set and puts each shard in."""
    job_id = planned(store, 2)
    assert due_in(store, job_id, JOB) is None
    assert [due_in(store, job_id, index) for index in range(2)] == [about(LEASE), about(LEASE)]


def test_planning_a_cancelled_job_sends_it_to_its_end(store: Store) -> None:
    """No shard is planned, so nothing is paid for."""
    job = new_job()
    store.jobs.submit(job)
    lease = claim_job(store, job.id)
    assert store.jobs.cancel(job.id) == (True, 0)
    _, epoch = store.leases.plan(lease, {"total": 2}, [ShardRecord(job=job.id, index=0, epoch=1)], ["merge-1"])
    found = store.jobs.get(job.id)
    assert (found.stage, found.state, found.epoch, found.shards) == (State.FINALIZING, State.CANCELLING, epoch, 0)
    assert list(store.shards.of_job(found.evolve(shards=1))) == []
    assert due_in(store, job.id, JOB) == about(LEASE)


def test_a_repeated_plan_changes_nothing_more(store: Store) -> None:
    """Shards that have gone on meanwhile are not thrown back."""
    job = new_job()
    store.jobs.submit(job)
    lease = claim_job(store, job.id)
    shards = [ShardRecord(job=job.id, index=0, epoch=1, rows=2)]
    store.leases.plan(lease, {}, shards, ["m"])
    advance(store, claim(store, job.id, 0, Stage.PLANNED), Stage.UPLOADED)
    assert store.leases.plan(lease, {}, shards, ["m"]) == (1, 0)
    assert (shard(store, job.id).stage, store.jobs.get(job.id).shards) == (Stage.UPLOADED, 1)


def test_a_deadline_that_was_met_is_known_and_grows_up_to_a_bound(store: Store, clock: Any) -> None:
    """Its holder lived, and did not get on. Who vanished before it is another matter."""
    job_id, granted_for = planned(store), []
    for _ in range(6):
        lease = granted(claim(store, job_id, 0, Stage.PLANNED, deadline=100))
        granted_for.append((round(lease.deadline), lease.overran))
        for _ in range(60):
            clock.advance(LEASE / 2)
            try:
                store.leases.renew(lease)
            except LeaseLost:
                break
    assert granted_for == [(100, False), (200, True), (400, True), (800, True), (800, True), (800, True)]
    assert (shard(store, job_id).overran, shard(store, job_id).lost) == (5, 5)
    granted(claim(store, job_id, 0, Stage.PLANNED, deadline=100))
    clock.advance(LEASE + 1)
    assert granted(claim(store, job_id, 0, Stage.PLANNED, deadline=100)).overran is False


def test_progress_keeps_a_lease_beyond_the_deadline(store: Store, clock: Any) -> None:
    """And no longer than a deadline after it has got on for the last time."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED, deadline=100))
    for _ in range(30):
        clock.advance(LEASE / 2)
        lease._progressed = True
        store.leases.renew(lease)
    clock.advance(50)
    assert store.leases.renew(lease)[0] == about(50)
    clock.advance(49)
    assert store.leases.renew(lease)[0] == about(1)
    clock.advance(2)
    with pytest.raises(LeaseLost):
        store.leases.renew(lease)
