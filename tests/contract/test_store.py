"""The protocol of the records, script by script, on fakeredis and on a real Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchpipe.errors import JobNotFound, LeaseLost, OutputInUse
from batchpipe.model.records import JOB, Counts, JobRecord, Move, Problem, ShardRecord, Stage, State, new_job_id
from batchpipe.store import ClaimDenied, JobLease, Lease, ShardLease, Store
from batchpipe.store.events import LOG_LENGTH
from batchpipe.store.shards import MOST_NAMED

LEASE = 60.0
DEADLINE = 300.0
OK = Stage.UPLOADED


def new_job(**fields: Any) -> JobRecord:
    job_id = new_job_id()
    output = fields.pop("output", f"/out/{job_id}")
    defaults = {"epoch": 1, "task_ids": ["prepare-1"], "owns": [output.rstrip("/")]}
    return JobRecord(id=job_id, output=output, **{**defaults, **fields})


def claim(store: Store, job_id: str, index: int, *stages: str, epoch: int = 1, deadline: float = DEADLINE) -> Any:
    if index == JOB:
        return store.leases.claim_job(job_id, epoch, stages, deadline=deadline)
    return store.leases.claim_shard(job_id, index, epoch, stages, deadline=deadline)


def granted(answer: Lease | ClaimDenied) -> Any:
    assert isinstance(answer, Lease), answer
    return answer


def claim_job(store: Store, job_id: str, epoch: int = 1) -> JobLease:
    enter, stages = State.PREPARING.value, [State.PENDING.value, State.PREPARING.value]
    lease = store.leases.claim_job(job_id, epoch, stages, deadline=DEADLINE, enter=enter)
    assert isinstance(lease, JobLease), lease
    return lease


def planned(store: Store, count: int = 1, **fields: Any) -> str:
    """A running job with shards in the stage `planned`."""
    job = new_job(**fields)
    store.jobs.submit(job)
    lease = claim_job(store, job.id)
    shards = [
        ShardRecord(job=job.id, index=index, epoch=1, rows=2, file="f", task_ids=["u", "c", "p", "d"])
        for index in range(count)
    ]
    assert store.leases.plan(lease, {"round": 1, "total": 2 * count}, shards, ["m"]) == (count, 0)
    return job.id


def advance(
    store: Store, lease: ShardLease, stage: Stage, after: float = 0.0, *, tries: str = "reset", **changes: Any
) -> tuple[Any, int]:
    return store.leases.advance(
        lease, Move(stage=stage, after=after, changes=changes), tries=tries, merge_ids=["merge-1"]
    )


def uploaded(store: Store, count: int = 1, **fields: Any) -> str:
    job_id = planned(store, count, **fields)
    for index in range(count):
        advance(store, claim(store, job_id, index, Stage.PLANNED), Stage.UPLOADED, file_id=f"file-{index}")
    return job_id


def shard(store: Store, job_id: str, index: int = 0) -> ShardRecord:
    return list(store.shards.of_job(store.jobs.get(job_id)))[index]


def due_in(store: Store, job_id: str, index: int) -> float | None:
    """Seconds until sweep takes the record's message for lost; None where it is not waited for."""
    score: Any = store.connection.client.zscore(f"{store.connection.prefix}due", f"{job_id}/{index}")
    return None if score is None else score - store.now()


def about(seconds: float) -> Any:
    """Redis' own clock goes on while a test runs."""
    return pytest.approx(seconds, abs=5.0)


# -- submit --------------------------------------------------------------------------------------------------------


def test_a_submitted_job_is_pending_and_due_one_margin_later(store: Store) -> None:
    """Its due time is recorded before any message: a submit that crashes here is found by sweep."""
    job = new_job(name="n", tags={"user": 7}, metadata={"a": "b"})
    assert store.jobs.submit(job) == (job.id, True)
    found = store.jobs.get(job.id)
    assert found.evolve(created_at=0.0, next_at=0.0) == job
    assert found.created_at == about(store.now())
    assert due_in(store, job.id, JOB) == about(LEASE)


def test_a_second_submit_with_the_same_key_answers_the_first_job(store: Store) -> None:
    """Nothing of the second is recorded."""
    first, second = new_job(key="k"), new_job(key="k")
    store.jobs.submit(first)
    assert store.jobs.submit(second) == (first.id, False)
    assert store.jobs.id_of_key("k") == first.id
    with pytest.raises(JobNotFound):
        store.jobs.get(second.id)


@pytest.mark.parametrize(("again", "taken"), [("1", True), ("first", True), ("job_of_somebody", False)])
def test_again_takes_the_key_over(store: Store, again: str, taken: bool) -> None:
    """ "1" from any job, an id from that job only."""
    first, second = new_job(key="k"), new_job(key="k")
    store.jobs.submit(first)
    assert store.jobs.submit(second, replace_job=first.id if again == "first" else again)[1] is taken
    assert store.jobs.id_of_key("k") == (second.id if taken else first.id)


def test_an_output_belongs_to_one_unfinished_job(store: Store) -> None:
    """Under each of its names."""
    first = new_job(output="/out/x", owns=["/out/x", "/real/x"])
    store.jobs.submit(first)
    for names in (["/out/x"], ["/other", "/real/x"]):
        with pytest.raises(OutputInUse, match=f"{first.id}, which has not ended"):
            store.jobs.submit(new_job(owns=names))
    assert store.jobs.submit(new_job(owns=["/other"]))[1]  # which the refused one has not taken


def test_a_refused_output_does_not_take_the_key(store: Store) -> None:
    """The key stays free for the next try."""
    store.jobs.submit(new_job(output="/out/x"))
    with pytest.raises(OutputInUse):
        store.jobs.submit(new_job(output="/out/x", key="k"))
    assert store.jobs.id_of_key("k") is None


def test_a_repeated_submit_is_no_second_one(store: Store) -> None:
    """The client repeats it after a lost answer: the same job, its key and its output are its own."""
    job = new_job(key="k")
    assert store.jobs.submit(job) == (job.id, True)
    claim_job(store, job.id)
    assert store.jobs.submit(job) == (job.id, True)
    assert store.jobs.get(job.id).stage == State.PREPARING


# -- claim ---------------------------------------------------------------------------------------------------------


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


# -- renew and save ------------------------------------------------------------------------------------------------


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


def test_who_lost_the_job_cannot_plan_finish_tell_or_defer(store: Store, clock: Any) -> None:
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


# -- advance -------------------------------------------------------------------------------------------------------


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


# -- raise and wake ------------------------------------------------------------------------------------------------


def test_raising_voids_the_epoch_and_answers_the_old_ids(store: Store) -> None:
    """next_at is now, the new ids are stored, and the old message ends at its claim."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.PLANNED, after=500)
    raised = store.due.bump_epoch(job_id, 0, ["new"])
    assert raised is not None
    assert (raised.epoch, raised.stage, raised.queue) == (2, Stage.PLANNED, "batchpipe")
    assert raised.old_ids == ["u", "c", "p", "d"]
    assert shard(store, job_id).task_ids == ["new"]
    assert claim(store, job_id, 0, Stage.PLANNED).why == "epoch"
    assert isinstance(claim(store, job_id, 0, Stage.PLANNED, epoch=2), Lease)


def test_raising_during_a_lease_leaves_a_wake_mark(store: Store) -> None:
    """The holder learns of it from each write, and from its end; the record is then due now."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert store.due.bump_epoch(job_id, 0, ["new"]) is None
    assert shard(store, job_id).epoch == 1
    assert store.leases.renew(lease)[1].republish
    assert store.leases.save(lease, {}).republish
    news, _ = advance(store, lease, Stage.UPLOADED, after=500)
    assert news.republish
    assert shard(store, job_id).next_at == about(store.now())
    assert store.due.bump_epoch(job_id, 0, ["new"]) is not None
    assert not shard(store, job_id).republish


def test_a_claim_clears_an_old_wake_mark(store: Store, clock: Any) -> None:
    """What it was meant for is being done."""
    job_id = planned(store)
    claim(store, job_id, 0, Stage.PLANNED)
    store.due.bump_epoch(job_id, 0, ["new"])
    clock.advance(LEASE + 1)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert not advance(store, lease, Stage.UPLOADED)[0].republish


def test_an_ended_lease_does_not_stop_a_raise(store: Store, clock: Any) -> None:
    """A vanished worker's shard is published again."""
    job_id = planned(store)
    claim(store, job_id, 0, Stage.PLANNED)
    clock.advance(LEASE + 1)
    assert store.due.bump_epoch(job_id, 0, ["new"]) is not None


def test_the_margin_doubles_with_each_publication_up_to_half_an_hour(store: Store) -> None:
    """Without it a backlog makes sweep outrun the workers for ever. A claim that succeeds resets it."""
    job_id = planned(store)
    margins = []
    for _ in range(7):
        store.due.bump_epoch(job_id, 0, ["new"])
        margins.append(due_in(store, job_id, 0))
    assert margins == [about(seconds) for seconds in (120, 240, 480, 960, 1800, 1800, 1800)]
    advance(store, claim(store, job_id, 0, Stage.PLANNED, epoch=8), Stage.PLANNED)
    assert due_in(store, job_id, 0) == about(LEASE)


def test_if_due_leaves_alone_what_is_under_way(store: Store, clock: Any) -> None:
    """Two sweeps at once: the second finds it published."""
    job_id = planned(store)
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is None
    clock.advance(LEASE + 1)
    assert store.due.overdue() == [(job_id, 0)]
    assert store.due.bump_epoch(job_id, 0, ["new"], when="overdue") is not None
    assert store.due.bump_epoch(job_id, 0, ["newer"], when="overdue") is None
    assert store.due.overdue() == []


def test_a_wake_reaches_what_sleeps_and_not_what_is_under_way(store: Store, clock: Any) -> None:
    """Else wakes that come faster than workers work would void each message before it is read."""
    job_id = planned(store)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.PLANNED, after=500)
    assert store.due.bump_epoch(job_id, 0, ["new"], when="asleep") is not None
    assert store.due.bump_epoch(job_id, 0, ["newer"], when="asleep") is None
    assert shard(store, job_id).task_ids == ["new"]
    clock.advance(2 * LEASE + 1)
    assert store.due.bump_epoch(job_id, 0, ["newest"], when="asleep") is not None
    claim(store, job_id, 0, Stage.PLANNED, epoch=3)
    assert store.due.bump_epoch(job_id, 0, ["x"], when="asleep") is None
    assert shard(store, job_id).republish


def test_a_snapshot_is_noted_only_of_the_batch_that_is_waited_for(store: Store) -> None:
    """It needs no lease, so it touches nothing else."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    assert lease.shard is not None
    assert not store.shards.record_batch_status(lease.shard, "batch_1", {"status": "completed"})
    store.shards.settle(lease.shard, "batch_1", token=lease.token, after=0.0, changes={})
    assert not store.shards.record_batch_status(lease.shard, "batch_2", {"status": "completed"})
    assert store.shards.record_batch_status(lease.shard, "batch_1", {"status": "completed"})
    found = shard(store, job_id)
    assert (found.status, found.stage, found.epoch) == ("completed", Stage.CREATED, 1)
    assert found.snapshot_at == about(store.now())


def test_accounts_that_create_calls_are_made_on_are_remembered(store: Store, clock: Any) -> None:
    """Only there can strays be."""
    job_id = uploaded(store, account="team")
    assert store.accounts.creating(0) == []
    store.leases.record_intent(granted(claim(store, job_id, 0, Stage.UPLOADED)))
    assert store.accounts.creating(store.now() - 10) == ["team"]
    clock.advance(100)
    assert store.accounts.creating(store.now() - 10) == []


def test_due_tells_the_longest_overdue_first(store: Store, clock: Any) -> None:
    """A pass of the sweep is bounded."""
    first = planned(store)
    clock.advance(10)
    second = planned(store)
    clock.advance(LEASE + 1)
    assert store.due.overdue() == [(first, 0), (second, 0)]
    assert store.due.overdue(limit=1) == [(first, 0)]


def test_what_has_ended_or_is_unknown_leaves_the_due_set(store: Store) -> None:
    """Raising it is refused."""
    job_id = planned(store, 2)
    advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.COLLECTED)
    store.connection.client.zadd(
        f"{store.connection.prefix}due", {f"{job_id}/0": 1.0, "job_no/3": 1.0, f"{job_id}/-1": 1.0}
    )
    for name, index in [(job_id, 0), ("job_no", 3), (job_id, JOB)]:
        assert store.due.bump_epoch(name, index, ["new"]) is None
        assert due_in(store, name, index) is None


# -- plan and cancel -----------------------------------------------------------------------------------------------


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


def test_cancel_tells_the_number_of_shards_and_is_learnt_by_each_holder(store: Store) -> None:
    """The flag is the truth; it stands beside the state."""
    job_id = planned(store, 2)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED))
    assert store.jobs.cancel(job_id) == (True, 2)
    assert store.jobs.cancel(job_id) == (True, 2)
    assert store.leases.renew(lease)[1].cancel
    assert advance(store, lease, Stage.UPLOADED)[0].cancel
    assert granted(claim(store, job_id, 1, Stage.PLANNED)).job.cancel
    assert store.jobs.get(job_id).state is State.CANCELLING


def test_cancelling_an_unknown_job_is_told(store: Store) -> None:
    """It may have expired."""
    with pytest.raises(JobNotFound):
        store.jobs.cancel("job_no")


# -- the paid call -------------------------------------------------------------------------------------------------


def test_the_time_of_the_first_intent_is_never_overwritten(store: Store, clock: Any) -> None:
    """It says from when on a batch may be in the provider's list. Each call clears the time of the empty look."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    first = shard(store, job_id).intent_at
    advance(store, lease, Stage.UPLOADED, empty_at=store.now())
    clock.advance(40)
    second = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(second)
    found = shard(store, job_id)
    assert (found.intent_at, found.empty_at, found.calls) == (first, None, [lease.token, second.token])


def test_a_repeated_intent_is_one_call(store: Store) -> None:
    """After a lost answer the client repeats it."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.leases.record_intent(lease)
    assert shard(store, job_id).calls == [lease.token]


def test_an_intent_tells_of_a_cancel(store: Store) -> None:
    """Then the paid call is not made."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    assert not store.leases.record_intent(lease).cancel
    store.jobs.cancel(job_id)
    assert store.leases.record_intent(lease).cancel


def test_only_the_last_withdrawn_call_clears_the_intent(store: Store) -> None:
    """While another call is unanswered its batch may turn up. Withdrawing twice is no different from once."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    advance(store, lease, Stage.UPLOADED)
    second = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(second)
    record = shard(store, job_id)
    for _ in range(2):
        store.shards.withdraw_call(record, second.token)
        found = shard(store, job_id)
        assert (found.intent_at, found.calls) == (record.intent_at, [lease.token])
    for _ in range(2):
        store.shards.withdraw_call(record, lease.token)
        found = shard(store, job_id)
        assert (found.intent_at, found.calls) == (None, [])


def test_withdrawing_an_unknown_call_leaves_the_intent(store: Store) -> None:
    """A call of an older key has nothing to say about this one."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.shards.withdraw_call(shard(store, job_id), "somebody")
    store.shards.withdraw_call(shard(store, job_id).evolve(try_=7), lease.token)
    assert shard(store, job_id).calls == [lease.token]


def settle(store: Store, job_id: str, batch: str = "batch_1", token: str | None = None, **fields: Any) -> Any:
    record = shard(store, job_id).evolve(**fields)
    return store.shards.settle(record, batch, token=token, after=5.0, changes={"status": "validating"})


def test_settling_by_the_holder_is_an_advance(store: Store) -> None:
    """The id, the stage and the index of batches are written, the lease is released."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    assert settle(store, job_id, token=lease.token).verdict == "ok"
    found = shard(store, job_id)
    assert (found.stage, found.batch_id, found.status) == (Stage.CREATED, "batch_1", "validating")
    assert (found.token, found.calls, found.tries) == (None, [], 0)
    assert found.next_at == about(store.now() + 5)
    assert due_in(store, job_id, 0) == about(5 + LEASE)
    assert store.shards.place_of_batch("batch_1") == (job_id, 0)


def test_a_repeated_settle_of_the_holder_is_the_same(store: Store) -> None:
    """After a lost answer it still counts as its own end of the turn."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    record = shard(store, job_id)
    for _ in range(2):
        settled = store.shards.settle(record, "batch_1", token=lease.token, after=5.0, changes={})
        assert settled.verdict == "ok"
    assert shard(store, job_id).next_at == about(store.now() + 5)


def test_a_batch_that_another_shard_has_is_not_settled_but_by_its_own_word(store: Store) -> None:
    """An answer may name the wrong one; a server that counts its ids again after a restart names the right one."""
    job_id = uploaded(store, 2)
    assert settle(store, job_id).verdict == "late"
    record = shard(store, job_id, 1)
    assert store.shards.settle(record, "batch_1", token=None, after=0.0, changes={}).verdict == "other"
    assert shard(store, job_id, 1).batch_id is None
    assert store.shards.settle(record, "batch_1", token=None, after=0.0, changes={}, sure=True).verdict == "late"


def test_another_account_may_have_the_same_id(store: Store) -> None:
    """Each server counts for itself."""
    assert settle(store, uploaded(store)).verdict == "late"
    other = uploaded(store, account="other")
    assert store.shards.of_batches("other", ["batch_1"]) == {}
    assert settle(store, other).verdict == "late"
    assert [found.job for found in store.shards.of_batches("other", ["batch_1", "batch_9"]).values()] == [other]


def test_ids_that_answers_named_are_kept_until_the_shard_has_its_batch(store: Store) -> None:
    """Or until somebody calls again, having settled them; a few at most."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.leases.record_intent(lease)
    store.shards.record_named_batches(shard(store, job_id), {"batch_1": False, "batch_2": True})
    store.shards.record_named_batches(shard(store, job_id), {"batch_1": True, "batch_2": False})
    assert shard(store, job_id).named == {"batch_1": True, "batch_2": True}
    store.shards.record_named_batches(shard(store, job_id), {f"batch_{n}": True for n in range(50)})
    assert len(shard(store, job_id).named) == MOST_NAMED
    store.shards.record_named_batches(shard(store, job_id).evolve(try_=9), {"batch_77": True})
    store.leases.record_intent(lease)
    assert shard(store, job_id).named == {}
    store.shards.record_named_batches(shard(store, job_id), {"batch_3": True})
    settle(store, job_id, token=lease.token)
    store.shards.record_named_batches(shard(store, job_id), {"batch_4": True})
    assert shard(store, job_id).named == {}


def test_calls_without_an_answer_do_not_pile_up(store: Store) -> None:
    """A provider may be down for days; the intent stays."""
    job_id = uploaded(store)
    for number in range(30):
        lease = granted(claim(store, job_id, 0, Stage.UPLOADED, epoch=shard(store, job_id).epoch))
        store.leases.record_intent(lease)
        advance(store, lease, Stage.UPLOADED)
        assert shard(store, job_id).calls[-1] == lease.token, number
    assert len(shard(store, job_id).calls) == 20


def test_settling_tells_the_holder_of_wake_and_cancel(store: Store) -> None:
    """It publishes the new chain itself."""
    job_id = uploaded(store)
    lease = granted(claim(store, job_id, 0, Stage.UPLOADED))
    store.jobs.cancel(job_id)
    store.due.bump_epoch(job_id, 0, ["new"])
    news = settle(store, job_id, token=lease.token).news
    assert (news.republish, news.cancel) == (True, True)
    assert shard(store, job_id).next_at == about(store.now())


@pytest.mark.parametrize("token", [None, "thawed"], ids=["by sweep", "by a late worker"])
def test_settling_late_ends_a_living_lease_and_makes_the_shard_due(store: Store, token: str | None) -> None:
    """The batch is a fact, and paid: who works on the shard meanwhile must not make another."""
    job_id = uploaded(store)
    other = granted(claim(store, job_id, 0, Stage.UPLOADED))
    assert settle(store, job_id, token=token).verdict == "late"
    found = shard(store, job_id)
    assert (found.batch_id, found.stage, found.token) == ("batch_1", Stage.CREATED, None)
    assert due_in(store, job_id, 0) == about(0)
    with pytest.raises(LeaseLost):
        store.leases.record_intent(other)


def test_a_recorded_id_is_known(store: Store) -> None:
    """Adopting it a second time, by anyone, is no news."""
    job_id = uploaded(store)
    settle(store, job_id)
    assert settle(store, job_id).verdict == "known"
    assert settle(store, job_id, token="somebody").verdict == "known"


def test_a_spent_id_is_known(store: Store) -> None:
    """It was given up on purpose; it is not cancelled again, and never recorded."""
    job_id = uploaded(store)
    advance(store, claim(store, job_id, 0, Stage.UPLOADED), Stage.UPLOADED, spent=["batch_0"])
    assert settle(store, job_id, "batch_0").verdict == "known"
    assert shard(store, job_id).batch_id is None


def test_the_recorded_id_wins(store: Store) -> None:
    """Every other batch is to be cancelled by who made it."""
    job_id = uploaded(store)
    settle(store, job_id)
    assert settle(store, job_id, "batch_2").verdict == "cancel"
    assert shard(store, job_id).batch_id == "batch_1"


def test_a_batch_of_another_key_stage_or_record_is_to_be_cancelled(store: Store) -> None:
    """An unknown record, too: nobody would ever read its rows."""
    job_id = uploaded(store)
    assert settle(store, job_id, try_=9).verdict == "cancel"
    assert settle(store, job_id, index=7).verdict == "cancel"
    advance(store, claim(store, job_id, 0, Stage.UPLOADED), Stage.COLLECTED)
    assert settle(store, job_id).verdict == "cancel"
    assert shard(store, job_id).batch_id is None


# -- the end -------------------------------------------------------------------------------------------------------


def merging(store: Store, **fields: Any) -> JobLease:
    """A claim on a job whose shards are collected."""
    job_id = planned(store, **fields)
    epoch = advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.COLLECTED)[1]
    lease: JobLease = granted(claim(store, job_id, JOB, State.FINALIZING, epoch=epoch))
    return lease


def test_finishing_fixes_the_state_and_leaves_the_job_due(store: Store) -> None:
    """A crash before telling is found by sweep."""
    lease = merging(store)
    assert store.leases.finish(lease, State.PARTIAL, {"ok": 1, "failed": 1}) is State.PARTIAL
    job = store.jobs.get(lease.job.id)
    assert (job.stage, job.ok, job.failed, job.token) == (State.PARTIAL, 1, 1, lease.token)
    assert job.ended_at == about(store.now())
    assert due_in(store, lease.job.id, JOB) == about(LEASE)


def test_the_cancel_flag_wins(store: Store) -> None:
    """A job whose user asked for its end is `cancelled`, however its rows came out."""
    lease = merging(store)
    store.jobs.cancel(lease.job.id)
    assert store.leases.finish(lease, State.SUCCEEDED, {}) is State.CANCELLED


def test_a_fixed_end_stays(store: Store) -> None:
    """A repeat, or a cancel that comes too late, changes nothing."""
    lease = merging(store)
    store.leases.finish(lease, State.SUCCEEDED, {"ok": 2})
    assert store.jobs.cancel(lease.job.id) == (False, 1)
    assert store.leases.finish(lease, State.FAILED, {"ok": 0}) is State.SUCCEEDED
    job = store.jobs.get(lease.job.id)
    assert (job.ok, job.cancel) == (2, False)


def test_an_ended_but_untold_job_can_be_claimed(store: Store, clock: Any) -> None:
    """Whoever told it may have vanished."""
    lease = merging(store)
    store.leases.finish(lease, State.SUCCEEDED, {})
    clock.advance(LEASE + 1)
    raised = store.due.bump_epoch(lease.job.id, JOB, ["new"], when="overdue")
    assert raised is not None
    assert isinstance(claim(store, lease.job.id, JOB, State.SUCCEEDED, epoch=raised.epoch), Lease)


def test_putting_off_an_ended_job_leaves_its_end(store: Store) -> None:
    """Telling may fail for a while; the state that users have seen stays."""
    lease = merging(store)
    store.leases.finish(lease, State.SUCCEEDED, {"ok": 2})
    store.leases.defer(lease, 10.0, {"trouble": Problem(code="x", message="y")}, tries="refund")
    assert store.jobs.get(lease.job.id).stage == State.SUCCEEDED


def test_a_told_job_leaves_the_due_set_and_its_records_expire(store: Store) -> None:
    """Its output is free for another; told twice is told once."""
    lease = merging(store, key="k", output="/out/told/")
    job_id = lease.job.id
    store.events.add(job_id, "x")
    store.leases.finish(lease, State.SUCCEEDED, {})
    for _ in range(2):
        store.leases.close_job(lease)
        assert store.jobs.get(job_id).closed
    assert due_in(store, job_id, JOB) is None
    assert claim(store, job_id, JOB, State.SUCCEEDED, epoch=store.jobs.get(job_id).epoch) == ClaimDenied("stage")
    for name in (f"job:{job_id}", f"shard:{job_id}:0", f"log:{job_id}", "key:k"):
        assert 0 < int(str(store.connection.client.ttl(store.connection.prefix + name))) <= 3600, name
    assert store.jobs.submit(new_job(output="/out/told"))[1]


def test_an_output_belongs_to_an_ended_job_until_it_is_told(store: Store) -> None:
    """Its telling is repeated, and writes job.json there."""
    lease = merging(store, output="/out/same")
    store.leases.finish(lease, State.SUCCEEDED, {})
    with pytest.raises(OutputInUse, match=f"{lease.job.id}, which has ended, but"):
        store.jobs.submit(new_job(output="/out/same"))
    store.leases.close_job(lease)
    assert store.jobs.submit(new_job(output="/out/same"))[1]


def test_a_job_claims_the_names_that_its_worker_sees_for_its_output(store: Store) -> None:
    """All or none, until it is closed; and no longer than its lease lasts."""
    other = planned(store, owns=["/taken"])
    lease = merging(store, owns=["/link"])
    with pytest.raises(OutputInUse, match=other):
        store.leases.claim_output(lease, ["/real", "/taken"])
    store.leases.claim_output(lease, ["/real", "/link"])
    assert store.jobs.get(lease.job.id).owns == lease.job.owns == ["/link", "/real"]
    for name in ("/link", "/real"):
        with pytest.raises(OutputInUse):
            store.jobs.submit(new_job(owns=[name]))
    store.leases.finish(lease, State.SUCCEEDED, {})
    store.leases.close_job(lease)
    with pytest.raises(LeaseLost):
        store.leases.claim_output(lease, ["/late"])
    assert store.jobs.submit(new_job(owns=["/link", "/real", "/late"]))[1]


def test_a_closed_job_does_not_free_the_output_of_another(store: Store) -> None:
    """A frozen worker may close it late."""
    lease = merging(store, owns=["/out/a"])
    store.connection.client.set(f"{store.connection.prefix}output:/out/a", "job_of_another")
    store.leases.finish(lease, State.SUCCEEDED, {})
    store.leases.close_job(lease)
    assert store.connection.client.get(f"{store.connection.prefix}output:/out/a") == "job_of_another"


def test_that_results_were_moved_is_noted_where_there_are_some(store: Store) -> None:
    """A job that has none, or that this Redis does not know, gets no record by it."""
    lease = merging(store, results="/out/a")
    store.jobs.set_results(lease.job.id, "/out/a/.batchpipe/x", "/real/a/.batchpipe/x")
    assert store.jobs.get(lease.job.id).results == "/out/a/.batchpipe/x"
    without = planned(store)
    for job_id in (without, "job_unknown"):
        store.jobs.set_results(job_id, "/elsewhere", "/elsewhere")
    assert store.jobs.get(without).results == ""
    with pytest.raises(JobNotFound):
        store.jobs.get("job_unknown")


# -- lists, log, accounts ------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_and_by_state(store: Store, clock: Any) -> None:
    """`cancelling` is a state to the user, though it is never stored."""
    pending = new_job()
    store.jobs.submit(pending)
    clock.advance(1)
    running = planned(store)
    clock.advance(1)
    cancelling = planned(store)
    store.jobs.cancel(cancelling)
    clock.advance(1)
    ended = merging(store)
    store.leases.finish(ended, State.SUCCEEDED, {})

    def ids(state: State | None, limit: int = 100) -> list[str]:
        return [job.id for job in store.jobs.newest(state=state, limit=limit)]

    assert ids(None) == [ended.job.id, cancelling, running, pending.id]
    assert ids(None, limit=2) == [ended.job.id, cancelling]
    assert ids(State.RUNNING) == [running]
    assert ids(State.CANCELLING) == [cancelling]
    assert ids(State.SUCCEEDED) == [ended.job.id]
    assert ids(State.FINALIZING) == []


def test_expired_jobs_vanish_from_the_lists(store: Store) -> None:
    """The lists are no memory of their own."""
    job_id, other = planned(store), planned(store)
    store.connection.client.delete(f"{store.connection.prefix}job:{job_id}")
    for _ in range(2):
        assert [job.id for job in store.jobs.newest()] == [other]


def test_expired_jobs_do_not_hide_others(store: Store, clock: Any) -> None:
    """However many there are, one listing finds what is left."""
    kept = new_job()
    store.jobs.submit(kept)
    clock.advance(1)
    for _ in range(300):
        gone = new_job()
        store.jobs.submit(gone)
        store.connection.client.delete(f"{store.connection.prefix}job:{gone.id}")
    assert [job.id for job in store.jobs.newest()] == [kept.id]


def test_the_log_is_read_in_order_and_from_an_id_on(store: Store) -> None:
    """Each event has an id, a time and its fields."""
    store.events.add("job_x", "one", shard=1)
    store.events.add("job_x", "two", text="é")
    first, second = store.events.read("job_x")
    assert (first["event"], first["shard"], second["event"], second["text"]) == ("one", 1, "two", "é")
    assert store.events.read("job_x", after=first["id"]) == [second]


def test_the_log_is_bounded(store: Store) -> None:
    """A job that has trouble for days does not fill Redis."""
    pipe = store.connection.client.pipeline(transaction=False)
    for _ in range(LOG_LENGTH + 500):
        pipe.xadd(f"{store.connection.prefix}log:job_x", {"event": "e", "data": "{}"})
    pipe.execute()
    store.events.add("job_x", "last")
    length = int(str(store.connection.client.xlen(f"{store.connection.prefix}log:job_x")))
    assert length <= LOG_LENGTH + 100  # Redis cuts whole nodes
    assert int(str(store.connection.client.ttl(f"{store.connection.prefix}log:job_x"))) > 0


def test_a_paused_account_tells_why_until_it_is_resumed(store: Store) -> None:
    """Another account goes on."""
    assert store.accounts.pause_of("default") is None
    store.accounts.pause("default", 100, Problem(code="insufficient_quota", message="no money"))
    pause = store.accounts.pause_of("default")
    assert pause is not None
    assert (pause.code, pause.message, pause.seconds) == ("insufficient_quota", "no money", about(100))
    assert store.accounts.pause_of("other") is None
    assert store.accounts.resume("default")
    assert not store.accounts.resume("default")
    assert store.accounts.pause_of("default") is None


def test_the_budget_of_looks_is_spent_and_refilled(store: Store, clock: Any) -> None:
    """A burst first, then so many in a second, over all workers."""

    def look() -> float:
        return store.accounts.take_rate_token("default", per_second=0.5, burst=2)

    assert [look(), look()] == [0, 0]
    assert look() == pytest.approx(2, abs=0.5)
    assert store.accounts.take_rate_token("other", per_second=0.5, burst=2) == 0
    clock.advance(2)
    assert look() == 0
    assert look() > 0
    clock.advance(3600)
    assert [look(), look(), look() > 0] == [0, 0, True]


def test_fields_of_a_newer_version_are_ignored(store: Store) -> None:
    """Deploys roll: an older worker reads what a newer one wrote."""
    job_id = planned(store)
    store.connection.client.hset(f"{store.connection.prefix}job:{job_id}", "from_the_future", "[1")
    assert store.jobs.get(job_id).id == job_id


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


def test_who_gets_on_keeps_its_lease_beyond_the_deadline(store: Store, clock: Any) -> None:
    """And no longer than a deadline after it has got on for the last time."""
    job_id = planned(store)
    lease = granted(claim(store, job_id, 0, Stage.PLANNED, deadline=100))
    for _ in range(30):
        clock.advance(LEASE / 2)
        lease._got_on = True
        store.leases.renew(lease)
    clock.advance(50)
    assert store.leases.renew(lease)[0] == about(50)
    clock.advance(49)
    assert store.leases.renew(lease)[0] == about(1)
    clock.advance(2)
    with pytest.raises(LeaseLost):
        store.leases.renew(lease)
