"""Jobs of many shards: every script takes a few hundred, and a crash between any two of them harms nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.records import JOB, JobRecord, Move, ShardRecord, Stage, State, new_job_id
from batchpipe.store import JobLease, ShardLease, Store
from batchpipe.store.due import CHUNK

COUNT = 2 * CHUNK + 1


class Killed(BaseException):
    """The process ends here."""


def new_job(**fields: Any) -> JobRecord:
    job_id = new_job_id()
    return JobRecord(id=job_id, epoch=1, task_ids=["p"], output=f"/out/{job_id}", owns=[f"/out/{job_id}"], **fields)


def shards(job_id: str, count: int = COUNT, file: str = "f") -> Iterator[ShardRecord]:
    for index in range(count):
        yield ShardRecord(job=job_id, index=index, epoch=1, rows=1, file=file, task_ids=["u", "c", "p", "d"])


def prepare(store: Store, job_id: str) -> JobLease:
    stages = [State.PENDING.value, State.PREPARING.value]
    found = store.leases.claim_job(job_id, 1, stages, deadline=9_999, enter=State.PREPARING.value)
    assert isinstance(found, JobLease), found
    return found


class Scripts:
    """Counts the scripts that are run, and dies before one of them."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.most_args = 0
        self.fatal: tuple[str, int] | None = None
        run = store.connection.run

        def counted(name: str, keys: Any, *args: Any) -> Any:
            if self.fatal == (name, self.names.count(name)):
                raise Killed
            self.names.append(name)
            self.most_args = max(self.most_args, len(args))
            return run(name, keys, *args)

        monkeypatch.setattr(store.connection, "run", counted)


def due(store: Store) -> set[str]:
    return {member for member, _ in store.connection.client.zscan_iter(f"{store.connection.prefix}due")}


def expected(job_id: str) -> set[str]:
    return {f"{job_id}/{index}" for index in range(COUNT)}


def test_no_script_is_given_more_than_a_few_hundred_shards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis bounds the arguments, and serves nobody else while a script runs."""
    job = new_job()
    store.jobs.submit(job)
    scripts = Scripts(store, monkeypatch)
    assert store.leases.plan(prepare(store, job.id), {"round": 1}, shards(job.id), ["m"]) == (COUNT, 0)
    assert scripts.names.count("draft_shards") == scripts.names.count("make_due") == 3
    assert scripts.most_args < CHUNK + 10
    found = store.jobs.get(job.id)
    assert (found.stage, found.shards, found.open) == (State.RUNNING, COUNT, COUNT)
    assert due(store) == expected(job.id)


@pytest.mark.parametrize("at", [("draft_shards", 0), ("draft_shards", 2), ("plan", 0)])
def test_a_plan_that_dies_before_it_is_seen_is_made_again(
    store: Store, clock: Any, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int]
) -> None:
    """Nobody sees what it wrote; the next one, of fewer shards, overwrites it."""
    job = new_job()
    store.jobs.submit(job)
    scripts = Scripts(store, monkeypatch)
    scripts.fatal = at
    dead = prepare(store, job.id)
    with pytest.raises(Killed):
        store.leases.plan(dead, {}, shards(job.id, COUNT + 5, "old"), ["m"])
    found = store.jobs.get(job.id)
    assert (found.stage, found.shards, due(store)) == (State.PREPARING, 0, {f"{job.id}/-1"})
    scripts.fatal = None
    clock.advance(61)
    with pytest.raises(LeaseLost):
        store.leases.plan(dead, {}, shards(job.id, 3, "old"), ["m"])
    assert store.leases.plan(prepare(store, job.id), {}, shards(job.id, COUNT, "new"), ["m"]) == (COUNT, 0)
    assert {shard.file for shard in store.shards.of_job(store.jobs.get(job.id))} == {"new"}


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_plan_that_dies_before_all_is_due_is_gone_on_with_by_the_sweep(
    store: Store, clock: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The job itself stays due until then."""
    job = new_job()
    store.jobs.submit(job)
    scripts = Scripts(store, monkeypatch)
    scripts.fatal = ("make_due", at)
    with pytest.raises(Killed):
        store.leases.plan(prepare(store, job.id), {}, shards(job.id), ["m"])
    scripts.fatal = None
    claimed = store.leases.claim_shard(
        job.id, COUNT - 1, 1, [Stage.PLANNED], deadline=100
    )  # its message was published early
    assert isinstance(claimed, ShardLease)
    store.leases.advance(claimed, Move(stage=Stage.COLLECTED), tries="reset", merge_ids=["m"])
    clock.advance(61)
    assert (job.id, JOB) in store.due.overdue()
    assert store.due.bump_epoch(job.id, JOB, ["x"], when="overdue") is None
    assert due(store) == expected(job.id) - {f"{job.id}/{COUNT - 1}"}


def test_a_cancelled_job_drafts_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job()
    store.jobs.submit(job)
    lease = prepare(store, job.id)
    store.jobs.cancel(job.id)
    count, epoch = store.leases.plan(lease, {}, shards(job.id), ["m"])
    assert (count, epoch) == (0, store.jobs.get(job.id).epoch)
    assert not list(store.connection.client.scan_iter(f"{store.connection.prefix}shard:{job.id}:*".replace("{", "\\{")))


def test_all_records_of_a_closed_job_expire_also_those_that_nobody_saw(store: Store, clock: Any) -> None:
    """A round that was drafted, and then cancelled, leaves nothing behind."""
    job = new_job()
    store.jobs.submit(job)
    lease = prepare(store, job.id)
    store.leases._fenced("draft_shards", lease, lease.token, f'["{COUNT}", "stage", "planned"]')
    store.leases.finish(lease, State.FAILED, {})
    store.leases.close_job(lease)
    assert store.connection.client.ttl(f"{store.connection.prefix}shard:{job.id}:{COUNT}") == pytest.approx(
        store.connection.ttl_seconds, abs=5
    )


def test_a_restore_that_dies_leaves_records_that_expire(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job().evolve(stage=State.RUNNING, shards=COUNT, open=COUNT, created_at=1.0, round=1)
    scripts = Scripts(store, monkeypatch)
    scripts.fatal = ("restore", 0)
    with pytest.raises(Killed):
        store.jobs.restore(job, shards(job.id))
    assert store.connection.client.ttl(f"{store.connection.prefix}shard:{job.id}:0") > 0
    scripts.fatal = ("make_due", 1)
    with pytest.raises(Killed):
        store.jobs.restore(job, shards(job.id))
    scripts.fatal = None
    assert store.jobs.restore(job, shards(job.id, 1, "other")) == ("known", "")
    store.due.bump_epoch(job.id, JOB, ["x"], when="overdue")  # as the sweep does
    assert due(store) == expected(job.id)
    assert {
        store.connection.client.ttl(f"{store.connection.prefix}shard:{job.id}:{index}")
        for index in (0, CHUNK, COUNT - 1)
    } == {-1}


def given_up(store: Store, indexes: range) -> str:
    """A closed job with these shards given up."""
    job = new_job()
    store.jobs.submit(job)
    store.leases.plan(prepare(store, job.id), {}, shards(job.id), ["m"])
    key, pipe = f"{store.connection.prefix}job:{job.id}", store.connection.client.pipeline(transaction=False)
    for index in range(COUNT):
        fields = {"stage": "collected"} | ({"batch_id": f"b{index}", "error": "{}"} if index in indexes else {})
        pipe.hset(f"{store.connection.prefix}shard:{job.id}:{index}", mapping=cast(Any, fields))
        pipe.zrem(f"{store.connection.prefix}due", f"{job.id}/{index}")
    pipe.hset(key, mapping={"stage": "finalizing", "epoch": "9", "open": "0"})
    pipe.execute()
    lease = store.leases.claim_job(job.id, 9, ["finalizing"], deadline=9_999)
    assert isinstance(lease, JobLease)
    store.leases.finish(lease, State.PARTIAL, {})
    store.leases.close_job(lease)
    return job.id


def landed(store: Store, job_id: str) -> list[int]:
    """Shards that are taken up again; all of them are due, and no record expires."""
    found = [shard.index for shard in store.shards.of_job(store.jobs.get(job_id)) if shard.landing]
    assert due(store) == {f"{job_id}/{index}" for index in found}
    assert store.connection.client.ttl(f"{store.connection.prefix}shard:{job_id}:{COUNT - 1}") == -1
    return found


def test_all_that_was_given_up_is_landed_in_one_call(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; a chunk in each script."""
    job_id, wanted = given_up(store, range(1, COUNT)), list(range(1, COUNT))
    scripts = Scripts(store, monkeypatch)
    assert store.jobs.land(job_id, wanted) == "ok"
    assert scripts.most_args < CHUNK + 10
    job = store.jobs.get(job_id)
    assert (job.stage, job.open, job.ended_at, landed(store, job_id)) == (State.RUNNING, COUNT - 1, None, wanted)
    assert store.jobs.land(job_id, wanted) == "running"
    shard = store.leases.claim_shard(job_id, 1, 2, [Stage.CREATED], deadline=9)
    assert isinstance(shard, ShardLease)
    assert shard.shard is not None
    assert (shard.shard.error, shard.shard.batch_id) == (None, "b1")


@pytest.mark.parametrize("at", [("mark_for_landing", 1), ("land", 0), ("make_due", 0), ("make_due", 1)])
def test_a_landing_that_dies_is_gone_on_with(
    store: Store, clock: Any, monkeypatch: pytest.MonkeyPatch, at: tuple[str, int]
) -> None:
    """By the next call, or, once the job runs, by the sweep; no shard is forgotten or counted twice."""
    job_id, wanted = given_up(store, range(COUNT)), list(range(COUNT))
    scripts = Scripts(store, monkeypatch)
    scripts.fatal = at
    with pytest.raises(Killed):
        store.jobs.land(job_id, wanted)
    scripts.fatal = None
    if at[0] == "make_due":
        clock.advance(61)
        store.due.bump_epoch(job_id, JOB, ["x"], when="overdue")  # as the sweep does
    else:
        assert store.jobs.get(job_id).stage == State.PARTIAL
        assert store.jobs.land(job_id, wanted) == "ok"
    assert (store.jobs.get(job_id).open, landed(store, job_id)) == (COUNT, wanted)


def test_a_job_that_has_not_ended_or_has_nothing_marked_is_not_landed(store: Store) -> None:
    job = new_job()
    store.jobs.submit(job)
    assert store.jobs.land(job.id, [0]) == "running"
    assert store.jobs.land(given_up(store, range(0)), []) == "none"


def test_a_cancel_leaves_to_the_sweep_what_its_caller_does_not_publish(store: Store) -> None:
    """A web request waits for a few, whatever the job's size; nobody is forgotten or taken twice."""
    job = new_job()
    store.jobs.submit(job)
    store.leases.plan(prepare(store, job.id), {}, shards(job.id), ["m"])
    assert store.jobs.cancel(job.id, published=20) == (True, COUNT)
    taken = list(iter(lambda: store.due.take_to_republish(200), None))
    assert [(found.job, found.when) for found in taken] == [(job.id, "always")] * len(taken)
    assert [index for found in taken for index in range(found.first, found.last)] == list(range(20, COUNT))


def test_jobs_that_are_being_cancelled_are_listed_without_reading_all(store: Store) -> None:
    jobs = [new_job() for _ in range(3)]
    for job in jobs:
        store.jobs.submit(job)
    store.jobs.cancel(jobs[1].id)
    assert [job.id for job in store.jobs.newest(state=State.CANCELLING)] == [jobs[1].id]
    assert store.connection.client.zcard(f"{store.connection.prefix}jobs:cancelling") == 1
    lease = prepare(store, jobs[1].id)
    store.leases.finish(lease, State.FAILED, {})
    assert store.jobs.newest(state=State.CANCELLING) == []
    assert store.connection.client.zcard(f"{store.connection.prefix}jobs:cancelling") == 0


def test_lists_are_pruned_of_expired_jobs_though_living_ones_stand_before_them(store: Store, clock: Any) -> None:
    """A few at a time, and all in the end."""
    jobs = [new_job() for _ in range(30)]
    for job in jobs:
        store.jobs.submit(job)
    for job in jobs[5:]:
        store.connection.client.delete(f"{store.connection.prefix}job:{job.id}")
    assert store.jobs.prune_lists(most=4) == 0  # their records may be on their way
    clock.advance(store.connection.ttl_seconds + 60)
    for _ in range(20):
        store.jobs.prune_lists(most=4)
    assert (
        store.connection.client.zcard(f"{store.connection.prefix}jobs")
        == store.connection.client.zcard(f"{store.connection.prefix}jobs:pending")
        == 5
    )
