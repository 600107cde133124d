"""How far a job is: rows answered, of how many, how fast. Pure.

A row is answered while the provider counts it as completed or failed, and once its shard is collected, if its outcome
is final: a row that is sent again is answered only when it comes back. So the number may fall a little when a shard is
collected. Rows that are missing for good are never answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from batchpipe.model.records import JobRecord, ShardRecord, Stage

#: The fields of shards, as they are stored, that tell how many of their rows are answered.
ANSWERED = ("round", "rows", "counts", "answered", "ok", "failed", "resend")
#: If counts were read longer ago, the time since then counts for the rate: nothing came in it.
READ_RECENTLY_SECONDS = 900.0
#: Over less than this, a rate says nothing.
_SHORTEST_SECONDS = 1.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is. ``rows_per_second``: over the last five to ten minutes in which counts were read, or since its
    first batch was made; None for a job that has ended or of which nothing was sent."""

    answered: int = 0
    total: int | None = None  #: rows of its input; None until that was read
    rows_per_second: float | None = None

    @property
    def percent(self) -> float | None:
        """Rounded down to a tenth, so that 100 means all."""
        if self.total is None:
            return None
        return math.floor(1_000 * self.answered / self.total) / 10 if self.total else None


def answered_of(shard: ShardRecord) -> int:
    """How many rows of a shard are answered."""
    if shard.stage != Stage.COLLECTED:
        counted = (shard.counts.completed or 0) + (shard.counts.failed or 0)
        return max(min(counted, shard.rows), 0)
    if shard.answered is not None:
        return shard.answered
    return max((shard.ok or 0) + (shard.failed or 0) - shard.resend, 0)  # collected by an older version


def answered_in(shards: Iterable[ShardRecord]) -> int:
    """How many rows of these shards are answered."""
    return sum(map(answered_of, shards))


def progress_of_job(job: JobRecord, *, now: float | None = None, answered: int | None = None) -> Progress:
    """From the record; ``answered`` of its shards, if they were read, else the sum that is kept in the record.

    ``now``: our time; without it the rate is that of the last reading.
    """
    if job.state.ended:
        return Progress(answered=(job.ok or 0) + (job.failed or 0), total=job.total)
    count = job.answered if answered is None else answered
    count = max(count if job.total is None else min(count, job.total), 0)
    return Progress(answered=count, total=job.total, rows_per_second=_rate(job, now))


def _rate(job: JobRecord, now: float | None) -> float | None:
    if not job.answered_before or job.answered_at is None:
        return None
    since, before = job.answered_before[0]
    ends = job.answered_at
    if now is not None and now - ends > READ_RECENTLY_SECONDS:
        ends = now
    if ends - since < _SHORTEST_SECONDS:
        return None
    return round(max(job.answered - before, 0.0) / (ends - since), 3)


def progress_view(progress: Progress) -> dict[str, Any]:
    """For JSON: ``{"answered", "total", "percent", "rows_per_second"}``; null: not known, or not to be said."""
    return {
        "answered": progress.answered,
        "total": progress.total,
        "percent": progress.percent,
        "rows_per_second": progress.rows_per_second,
    }


def rate_words(rate: float | None) -> str:
    """For people: ``3.2 rows/s``, ``90 rows/h`` where it is slow; empty if it is not known."""
    if rate is None:
        return ""
    for per, unit in ((1.0, "s"), (60.0, "min"), (3_600.0, "h")):
        if rate * per >= 1 or unit == "h":
            value = rate * per
            return f"{value:,.0f} rows/{unit}" if value >= 10 or value == 0 else f"{value:.1f} rows/{unit}"
    return ""


def progress_words(view: dict[str, Any]) -> str:
    """For people, from the ``progress`` of a view: ``1,234 of 10,000 rows answered (12%), 3.2 rows/s``."""
    total = f"{view['total']:,}" if view["total"] is not None else "-"
    words = f"{view['answered']:,} of {total} rows answered"
    if view["percent"] is not None:
        words += f" ({int(view['percent'])}%)"
    return ", ".join(filter(None, (words, rate_words(view["rows_per_second"]))))
