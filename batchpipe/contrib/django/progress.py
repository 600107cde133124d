"""How far a job is, for a bar on a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchpipe.client.client import Job
    from batchpipe.model.records import JobRecord


@dataclass(frozen=True)
class Progress:
    """How far a job is, and the words for it."""

    percent: int | None
    text: str


def progress(job: JobRecord, now: float | None = None) -> Progress:
    """From its record alone. ``now``: our time, for the rate."""
    if job.state.ended:
        text = f"{job.ok or 0:,} of {job.total or 0:,} ok"
        return Progress(_percent(job.ok or 0, job.total), text) if job.total else Progress(None, "no rows")
    if not job.shards:
        return Progress(None, "checking the input" if job.stage == "preparing" else "waiting for a worker")
    if job.stage == "finalizing":
        return Progress(100, "writing the results")
    from batchpipe.model.progress import progress_of_job, rate_words

    found = progress_of_job(job, now=now)
    words = [f"{found.answered:,} of {found.total or 0:,} rows answered", rate_words(found.rows_per_second)]
    again = f"round {job.round}" if job.round > 1 else ""
    return Progress(_percent(found.answered, found.total), ", ".join(filter(None, (*words, again))))


def progress_of(job: Job) -> Progress:
    """How far a job is, as last read, for a page of your own."""
    return progress(job.record)


def _percent(done: int, total: int | None) -> int:
    return min(100, 100 * done // total) if total else 0
