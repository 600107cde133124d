"""Shards that ask for room, create, end and are refused, as turns of the pipeline do it."""

from __future__ import annotations

from typing import Any

from batchpipe.model.admission import Full, Kind, Limits, Waiting
from batchpipe.model.records import Stage
from batchpipe.store import ShardLease, Store
from tests.contract.store.protocol import advance, claim, granted, shard

TEN: Limits = {"tokens": 10}


def needs(tokens: int, **others: int) -> dict[Kind, int]:
    return {"tokens": tokens, "batches": 1, "creations": 1, **others}  # type: ignore[dict-item]


def turn(store: Store, job_id: str, index: int = 0, *, epoch: int = 1) -> ShardLease:
    lease: ShardLease = granted(claim(store, job_id, index, Stage.PLANNED, Stage.UPLOADED, Stage.CREATED, epoch=epoch))
    return lease


def ask(store: Store, job_id: str, index: int = 0, tokens: int = 10, limits: Limits = TEN) -> Any:
    """A turn that asks, and parks if it has to wait."""
    lease = turn(store, job_id, index)
    answer = store.admission.admit(lease, needs(tokens), limits)
    if isinstance(answer, Waiting):
        advance(store, lease, Stage.PLANNED, after=600)
    else:
        advance(store, lease, Stage.UPLOADED, file_id=f"file-{index}")
    return answer


def create(store: Store, job_id: str, index: int = 0) -> None:
    lease = turn(store, job_id, index)
    assert not store.leases.record_intent(lease, admitted=True).no_hold
    batch = f"batch_{job_id}_{index}_{lease.shard.try_}"
    store.shards.settle(lease.shard, batch, token=lease.token, after=0, changes={"status": "validating"})


def refuse(store: Store, job_id: str, index: int = 0, limit: int | None = None, kind: Kind = "tokens") -> None:
    """The provider's queue was full: what the poll of a failed batch writes."""
    lease = turn(store, job_id, index)
    spent = [*lease.shard.spent, lease.shard.batch_id]
    changes: Any = {"try_": lease.shard.try_ + 1, "spent": spent, "batch_id": None, "intent_at": None, "status": None}
    advance(store, lease, Stage.UPLOADED, after=600, full=Full(kind=kind, limit=limit), **changes)


def held(store: Store, kind: str = "tokens") -> int:
    return sum(room.held for room in store.admission.rooms("default") if room.kind == kind)


def of_model(store: Store, job_id: str, index: int, model: str) -> None:
    store.connection.client.hset(store.connection.key(job_id, index), "model", model)


def learned(store: Store) -> int | None:
    return next(room.learned for room in store.admission.rooms("default") if room.kind == "tokens")


def end(store: Store, job_id: str, index: int = 0, status: str = "completed") -> None:
    record = shard(store, job_id, index)
    assert record.batch_id is not None
    assert store.shards.record_batch_status(record, record.batch_id, {"status": status})
