"""Batches that stand far outside what their model usually takes: when one is late, and what is said of it. Pure."""

from __future__ import annotations

from batchpipe.model.eta import length, rate_of
from batchpipe.model.pace import History
from batchpipe.model.records import Problem, ShardRecord

#: A batch is late after so many times what 99 in 100 take; with none of its rows answered already after so many.
FAR_OUTSIDE, SILENT_OUTSIDE = 3.0, 1.5
#: Never before it has run for so long, in seconds.
LEAST_SECONDS = 3_600.0
#: Where nothing is known of a model: in progress for so long without any answer, in seconds.
SILENT_SECONDS = 12 * 3_600.0

LATE, SILENT = "batch_late", "no_answers"


def stall_of(shard: ShardRecord, history: History, now: float) -> Problem | None:
    """How the batch of a shard is late; None if it is not, or if nobody can tell."""
    made = shard.born_at
    if made is None or now - made < LEAST_SECONDS:
        return None
    age, usual = now - made, history.normal(0.99)
    silent = _is_silent(shard)
    if usual is None:
        began = shard.in_progress_at if shard.in_progress_at is not None else made
        if silent and now - began >= SILENT_SECONDS:
            return Problem(code=SILENT, message=_said(shard, f"is in progress for {length(now - began)}"))
        return None
    if age <= usual * (SILENT_OUTSIDE if silent else FAR_OUTSIDE):
        return None
    if (rate := rate_of(shard)) is not None and rate.rest <= usual:  # it is slow, and nearly done
        return None
    model = f" of {shard.model}" if shard.model else ""
    seen = f"has not ended after {length(age)}: 99 in 100 batches{model} ended within {length(usual, up=True)} lately"
    return Problem(code=SILENT if silent else LATE, message=_said(shard, seen))


def _is_silent(shard: ShardRecord) -> bool:
    """The provider counts its rows, and none of them is answered."""
    counts = shard.counts
    return shard.status == "in_progress" and bool(counts.total) and not (counts.completed or counts.failed)


def _said(shard: ShardRecord, seen: str) -> str:
    answered = (shard.counts.completed or 0) + (shard.counts.failed or 0)
    rows = f"; {answered:,} of its {shard.counts.total:,} rows are answered" if shard.counts.total else ""
    return (
        f"{shard.batch_id} {seen}{rows}. It may still end by itself. What has not run is sent again by "
        f"`batchpipe cancel {shard.job}`, then `batchpipe retry {shard.job}`; another model may be quicker"
    )
