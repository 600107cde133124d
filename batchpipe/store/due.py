"""What is due: overdue records, and messages that are published again, under a new epoch, now or by the next sweeps."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

import orjson

from batchpipe.errors import StoreUnavailable
from batchpipe.model.records import JOB, Problem
from batchpipe.store.connection import Connection
from batchpipe.store.records import encode_changes, parse_member

logger = logging.getLogger(__name__)

#: Which messages a new epoch may void (see ``Due.bump_epoch``).
When = Literal["overdue", "waiting", "always"]
#: Shards that one script makes due: a few milliseconds, because Redis serves nobody else while it runs.
CHUNK = 100
#: Records that one call of a script postpones.
_POSTPONED = 500
#: How long an unreadable record is left alone.
ASIDE_SECONDS = 1_800.0


@dataclass(frozen=True)
class NewEpoch:
    """A new epoch, under which the caller publishes; ``old_ids`` are the Celery ids of the void messages."""

    epoch: int
    stage: str
    queue: str
    old_ids: list[str]


class ToRepublish(NamedTuple):
    """Shards of a job to publish again: from an index up to another one, which is excluded."""

    job: str
    when: str
    first: int
    last: int


def new_task_ids(count: int) -> list[str]:
    """Fresh Celery task ids: stored with the epoch, before anything is published."""
    return [str(uuid.uuid4()) for _ in range(count)]


class Due:
    """Everything unfinished, by the time when its message counts as lost."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def overdue(self, limit: int = 1_000) -> list[tuple[str, int]]:
        """(job id, index) of overdue records, the longest overdue first."""
        members = self._redis.call(
            "zrangebyscore",
            f"{self._redis.prefix}due",
            "-inf",
            f"{self._redis.now():.6f}",
            start=0,
            num=limit,
        )
        return self._places(members)

    def unfinished(self, limit: int = 1_000) -> list[tuple[str, int]]:
        """(job id, index) of open records, also of ended jobs that are not closed; by due time."""
        return self._places(self._redis.call("zrange", f"{self._redis.prefix}due", 0, limit - 1))

    def _places(self, members: Sequence[str]) -> list[tuple[str, int]]:
        """The records that these members of the due set name. A member that names none is removed from the set."""
        found = []
        for member in members:
            try:
                found.append(parse_member(member))
            except ValueError:
                logger.warning(
                    "not of ours, taken out of the due set: %.100r", member, extra={"event": "due_unreadable"}
                )
                with suppress(StoreUnavailable):
                    self._redis.call("zrem", f"{self._redis.prefix}due", member)
        return found

    def postpone(self, places: Sequence[tuple[str, int]], seconds: float) -> None:
        """The messages of these overdue records are not lost: they are overdue again after so long."""
        members = [self._redis.member(job_id, index) for job_id, index in places]
        for start in range(0, len(members), _POSTPONED):
            self._redis.run(
                "postpone_overdue", [f"{self._redis.prefix}due"], seconds, *members[start : start + _POSTPONED]
            )

    def set_aside(self, job_id: str, index: int) -> None:
        """Let an unreadable record be overdue again later: at the head of the due set it would be in the way."""
        later = self._redis.now() + ASIDE_SECONDS
        self._redis.call("zadd", f"{self._redis.prefix}due", {self._redis.member(job_id, index): later}, xx=True)

    def note_trouble(self, job_id: str, index: int, problem: Problem) -> None:
        """Note why a record makes no progress, though nobody holds it. Does nothing if it has ended."""
        self._redis.run("note_trouble", self._redis.keys(job_id, index), *encode_changes({"trouble": problem}))

    def bump_epoch(
        self, job_id: str, index: int, ids: list[str], *, when: When = "always", after: float = 0.0
    ) -> NewEpoch | None:
        """Void a record's messages and take a new epoch for new ones, which run after ``after`` seconds, with their
        task ids. Returns None if not now, or not ever.

        ``when``: only if its message is ``overdue``, also if it is ``waiting`` until its time, or ``always``, even
        while one is under way. If the record is leased, that is left to the holder (``republish``).
        """
        answer = self._redis.run(
            "bump_epoch",
            self._redis.keys(job_id, index),
            self._redis.member(job_id, index),
            self._redis.lease_seconds,
            orjson.dumps(ids).decode(),
            when,
            after,
        )
        if answer[0] == "undue":
            self.make_due(job_id)
        if answer[0] != "ok":
            return None
        return NewEpoch(int(answer[1]), answer[2], answer[3], orjson.loads(answer[4]))

    def make_due(self, job_id: str) -> None:
        """Continue to make the shards of a running job due, if that is not done. Any process may do so at any time."""
        args = (self._redis.prefix, job_id, self._redis.lease_seconds, CHUNK)
        while int(self._redis.run("make_due", self._redis.keys(job_id, JOB), *args)[0]):
            pass

    def leave_to_republish(self, first: Mapping[str, int], when: str) -> None:
        """Let the sweeps publish shards of these jobs again, each from an index on.

        ``when``: as for ``bump_epoch``, or ``person``: only those that wait for a person.
        """
        self._redis.call(
            "zadd",
            f"{self._redis.prefix}to_republish",
            {f"{job_id}/{when}": at for job_id, at in first.items()},
        )

    def take_to_republish(self, most: int) -> ToRepublish | None:
        """The next shards, at most so many, that a cancel, a resume or the end of a hold has left to the sweeps."""
        found = self._redis.run("take_to_republish", [f"{self._redis.prefix}to_republish"], self._redis.prefix, most)
        return ToRepublish(found[0], found[1], int(found[2]), int(found[3])) if found else None

    def note_sweep(self) -> None:
        """Note that a sweep is complete."""
        self._redis.run("note_sweep", [f"{self._redis.prefix}swept", f"{self._redis.prefix}taken"])
