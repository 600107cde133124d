"""Batches that stand far outside what their model usually takes: when one is late, and what is said of it. Pure."""

from __future__ import annotations

from batchpipe.model.eta import length
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
            return Problem(code=SILENT, message=_said(shard, f"is in progress for {length(now - began)}", silent=True))
        return None
    if age <= usual * (SILENT_OUTSIDE if silent else FAR_OUTSIDE):
        return None
    model = f" of {shard.model}" if shard.model else ""
    seen = f"has not ended after {length(age)}: 99 in 100 batches{model} ended within {length(usual, up=True)} lately"
    return Problem(code=SILENT if silent else LATE, message=_said(shard, seen, silent=silent))


def _is_silent(shard: ShardRecord) -> bool:
    """The provider counts its rows, and none of them is answered."""
    counts = shard.counts
    return shard.status == "in_progress" and bool(counts.total) and not (counts.completed or counts.failed)


def _said(shard: ShardRecord, seen: str, *, silent: bool) -> str:
    none = "; none of its rows is answered" if silent else ""
    return (
        f"{shard.batch_id} {seen}{none}. It may still end by itself. What has not run is sent again by "
        f"`batchpipe cancel {shard.job}`, then `batchpipe retry {shard.job}`; another model may be quicker"
    )
