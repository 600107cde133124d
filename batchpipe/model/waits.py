"""What a job or a shard waits for, in one form for all that can hold it up. Pure.

``{"code", "message", "place", "of"}``: a word for programs, a text for people, and its place in a queue of so many,
null where it stands in none.
"""

from __future__ import annotations

from typing import Any

from batchpipe.model.admission import Waiting
from batchpipe.model.records import JobRecord, Problem, ShardRecord, Stage
from batchpipe.model.room import waits_for
from batchpipe.model.stats import Pause


def job_waits_for(
    job: JobRecord,
    pause: Pause | None = None,
    room: tuple[int, Waiting] | None = None,
    troubled: ShardRecord | None = None,
) -> dict[str, Any] | None:
    """What holds up a job: a person's decision, the ``pause`` of its account, or trouble of its own.

    ``room``: so many of its shards wait for room at the provider, the first of them like this; ``troubled``: the first
    of its shards that is in trouble. Others may go on.
    """
    if job.state.ended:
        return None
    if job.hold is not None:
        return _wait("hold", job.hold.message)
    if pause is not None:
        message = f"account {job.account!r} is paused for {pause.seconds:.0f} s ({pause.code}): {pause.message}"
        return _wait("paused", message)
    if job.trouble is None and room is not None:
        count, first = room
        found = waits_for(first)
        message = found["message"] if count != 1 else f"waits{found['message'].removeprefix('wait')}"
        return {**found, "message": f"{count:,} shard{'s' * (count != 1)} {message}"}
    if job.trouble is None and troubled is not None and troubled.trouble is not None:
        of = f"shard {troubled.index:,}: " if job.shards > 1 else ""
        return _wait(troubled.trouble.code, f"{of}{troubled.trouble.message}")
    return _of(job.trouble)


def shard_waits_for(shard: ShardRecord, room: Waiting | None = None) -> dict[str, Any] | None:
    """What holds up a shard: ``room`` at the provider, trouble that passes, or that a person has to mend."""
    if shard.stage == Stage.COLLECTED:
        return None
    return waits_for(room) if room is not None else _of(shard.trouble)


def _of(trouble: Problem | None) -> dict[str, Any] | None:
    return _wait(trouble.code, trouble.message) if trouble is not None else None


def _wait(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "place": None, "of": None}


def wait_words(view: dict[str, Any] | None) -> str:
    """For people: the message, and the place in the queue; empty if it waits for nothing."""
    if view is None:
        return ""
    of = f" of {view['of']:,}" if view.get("of") is not None else ""
    place = f" (place {view['place']:,}{of})" if view.get("place") is not None else ""
    return f"{view['message']}{place}"
