"""Steps of the protocol, as the tests of the store take them."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.records import JOB, JobRecord, Move, ShardRecord, Stage, State, new_job_id
from batchpipe.store import ClaimDenied, JobLease, Lease, ShardLease, Store

LEASE = 60.0
DEADLINE = 300.0


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


def merging(store: Store, **fields: Any) -> JobLease:
    """A claim on a job whose shards are collected."""
    job_id = planned(store, **fields)
    epoch = advance(store, claim(store, job_id, 0, Stage.PLANNED), Stage.COLLECTED)[1]
    lease: JobLease = granted(claim(store, job_id, JOB, State.FINALIZING, epoch=epoch))
    return lease


def shard(store: Store, job_id: str, index: int = 0) -> ShardRecord:
    return list(store.shards.of_job(store.jobs.get(job_id)))[index]


def due_in(store: Store, job_id: str, index: int) -> float | None:
    """Seconds until sweep takes the record's message for lost; None where it is not waited for."""
    score: Any = store.connection.client.zscore(f"{store.connection.prefix}due", f"{job_id}/{index}")
    return None if score is None else score - store.now()


def about(seconds: float) -> Any:
    """Redis' own clock goes on while a test runs."""
    return pytest.approx(seconds, abs=5.0)
