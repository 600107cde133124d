"""Waiting for rows that a provider counts and does not show yet: the files of a batch may lag its counts by minutes.

Rows that are counted as answered are paid, so they are not sent again; we wait for them and say so, but not for ever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from batchpipe.model.records import LONGEST_PAUSE, JobRecord, Move, Problem, ShardRecord, Stage

#: A job that is being cancelled must end: it waits no longer than this.
CANCELLED_SECONDS = 600.0
#: Rows that are only counted as failed are not paid; a lagging error file is waited for as long.
UNPAID_SECONDS = 600.0
#: Between two looks: a quarter of the time that was waited, but at least this.
_SHORTEST_PAUSE = 2.0
#: A look counts as in time if it is late by no more than this or than the pause before it, because queues delay it.
_SHORTEST_LAPSE = 10.0
#: The fields of a shard that say since when something is waited for; `bump_epoch.lua` has them, too.
_WAITS = ("late_at", "unseen_at", "refused_at", "other_at")
#: The fields of a shard that say what is wrong, and what they are after a turn that went well.
WELL: Mapping[str, Any] = {"trouble": None, "backoff": 0, "unseen_at": None, "gone_at": None}


def wait_for_files(
    job: JobRecord,
    shard: ShardRecord,
    stage: Stage,
    what: str,
    *,
    now: float,
    patience: float,
    changes: dict[str, Any] | None = None,
    code: str = "files_late",
    unpaid: bool = False,
) -> Move | None:
    """Come back to this stage later; None if the patience (in seconds) is over.

    ``what`` it waits for, in words; ``code`` of the trouble. ``unpaid``: the missing rows are all counted as failed.
    """
    patience = min(patience, UNPAID_SECONDS) if unpaid else patience
    since = shard.late_at if shard.late_at is not None else now
    ends = since + (min(patience, CANCELLED_SECONDS) if job.cancel else patience)
    if ends - now < 0.001:
        return None
    why = ", for the job is being cancelled" if job.cancel else ""
    message = f"{what}; waited for since {utc(since)}, until {utc(ends)} at most{why} (FILES_PATIENCE_SECONDS)"
    pause = min(max((now - since) / 4, _SHORTEST_PAUSE), LONGEST_PAUSE, ends - now)
    waiting = {"late_at": since, "trouble": Problem(code=code, message=message)}
    events = [(code, {"message": message})] if shard.late_at is None else []
    return Move(stage=stage, after=pause, changes={**(changes or {}), **waiting}, events=events)


def attended(shard: ShardRecord, now: float) -> ShardRecord:
    """The shard with its waits begun later, by the time in which it was due and nobody looked.

    Workers may have been away, or Redis' clock leapt: in neither case could we see what the provider showed, and these
    waits decide what happens to paid rows. What a sweep published again meanwhile was due from that moment on: the
    script `bump_epoch` takes the time before it off.
    """
    unattended = now - shard.next_at - max(shard.wait, _SHORTEST_LAPSE)
    if unattended <= 0.0:
        return shard
    return shard.evolve(**{name: min(since + unattended, now) for name, since in waits_of(shard).items()})


def waits_of(shard: ShardRecord) -> dict[str, float]:
    """Since when it waits, by field. Each turn records that, so shortened waits survive a turn that did not look."""
    return {name: since for name in _WAITS if (since := getattr(shard, name)) is not None}


def utc(at: float) -> str:
    """A time as people read it in messages."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
