"""What people read of a shard's turn."""

from __future__ import annotations

from batchpipe.model.records import Move, ShardRecord


def what_follows(mode: str, job_id: str) -> str:
    """What happens to a job when one of its batches was cancelled elsewhere, and what a person can do."""
    if mode == "resend":
        return (
            "its rows that were not run are sent again, as long as the job's attempts last "
            f"(CANCELLED_ELSEWHERE=resend); end the job: batchpipe cancel {job_id}"
        )
    if mode == "land":
        return "nothing more is sent of this job; what has finished is landed"
    return (
        f"nothing more is sent of this job. Send its rows again: batchpipe resume {job_id}; take what is there: "
        f"batchpipe land {job_id}; end it: batchpipe cancel {job_id}"
    )


def why(shard: ShardRecord, move: Move) -> str:
    """The state of a shard after a turn, in words."""
    trouble, status, counts = (move.changes.get(name, getattr(shard, name)) for name in ("trouble", "status", "counts"))
    if trouble is not None:
        return str(trouble.message)
    parts = [status, f"({shard.batch_id})"] if shard.batch_id else [move.stage.value]
    if counts is not None and counts.total:
        parts.insert(1, f"{(counts.completed or 0) + (counts.failed or 0)} of {counts.total} rows")
    return " ".join(part for part in parts if part)
