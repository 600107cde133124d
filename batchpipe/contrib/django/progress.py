"""How far a job is, for a bar on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchpipe.client.client import Job
    from batchpipe.model.records import JobRecord, ShardRecord

#: If a job has more shards, a list page does not read each of them.
FEW_SHARDS = 200


@dataclass(frozen=True)
class Progress:
    """How far a job is, and the words for it."""

    percent: int | None
    text: str


def progress(job: JobRecord, shards: Sequence[ShardRecord] | None = None) -> Progress:
    """From the provider's own counts if the ``shards`` are given, else from the shards that are collected."""
    if job.state.ended:
        text = f"{job.ok or 0:,} of {job.total or 0:,} ok"
        return Progress(_percent(job.ok or 0, job.total), text) if job.total else Progress(None, "no rows")
    if not job.shards:
        return Progress(None, "checking the input" if job.stage == "preparing" else "waiting for a worker")
    if job.stage == "finalizing":
        return Progress(100, "writing the results")
    again = f", round {job.round}" if job.round > 1 else ""
    if shards is None:
        done = job.shards - job.open
        return Progress(_percent(done, job.shards), f"{done:,} of {job.shards:,} batches{again}")
    now = [shard for shard in shards if shard.round == job.round]
    total = sum(shard.rows for shard in now)
    done = sum(_answered(shard) for shard in now)
    return Progress(_percent(done, total), f"{done:,} of {total:,} rows answered{again}")


#: The fields of shards that tell how far they are.
_ANSWERED = ("round", "rows", "counts")


def progress_of(job: Job) -> Progress:
    """How far a job is, for a page of your own; its shards are read if they are few. Raises StoreUnavailable."""
    few = not job.state.ended and 0 < job.record.shards <= FEW_SHARDS
    return progress(job.record, list(job.shards(_ANSWERED)) if few else None)


def _answered(shard: ShardRecord) -> int:
    if shard.stage == "collected":
        return shard.rows
    return min(shard.rows, (shard.counts.completed or 0) + (shard.counts.failed or 0))


def _percent(done: int, total: int) -> int:
    return min(100, 100 * done // total) if total else 0
