"""What is known about queues: which workers listen, when a message was last taken, and what waits in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from batchpipe.model.records import State
from batchpipe.store.connection import Connection

#: How often a worker notes on which queues it listens, and after what time without that it counts as gone. Seconds.
LISTENING_PACE, LISTENING_SECONDS = 10.0, 35.0


@dataclass(frozen=True)
class WaitingMessage:
    """The newest message of a record: its queue, and when it was published (in the time of the records)."""

    queue: str
    published: float
    own_queue: bool = False  #: the queue of a ``run``, which starts its own worker
    times: int = 0  #: how often it was published again without effect


class BeatTimes(NamedTuple):
    """Times of beat's messages of one name; 0: never."""

    sent: float  #: the last one
    taken: float  #: the last one that a worker took
    since: float  #: the first one that was sent after that


class Queues:
    """Queues of Celery, by their names."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    # -- listening -------------------------------------------------------------------------------------------------

    @property
    def _listening(self) -> str:
        return f"{self._redis.prefix}listening"

    def note_listening(self, worker: str, queues: Iterable[str]) -> None:
        """Note that this worker takes from these queues now."""
        now = self._redis.now()
        pipe = self._redis.pipeline()
        if found := {f"{queue}\n{worker}": now for queue in queues}:
            pipe.zadd(self._listening, found)
        pipe.zremrangebyscore(self._listening, "-inf", f"{now - LISTENING_SECONDS:.6f}")
        self._redis.execute(pipe)

    def forget_listening(self, worker: str, queues: Iterable[str]) -> None:
        """Note that this worker no longer takes from these queues."""
        if members := [f"{queue}\n{worker}" for queue in queues]:
            self._redis.call("zrem", self._listening, *members)

    def listening(self) -> dict[str, list[str]]:
        """Queue -> names of the workers that listen on it, as they have noted."""
        since = f"{self._redis.now() - LISTENING_SECONDS:.6f}"
        found: dict[str, list[str]] = {}
        for member in self._redis.call("zrangebyscore", self._listening, since, "+inf"):
            queue, _, worker = member.partition("\n")
            found.setdefault(queue, []).append(worker)
        return found

    def lapsed(self) -> set[str]:
        """Queues of workers that have noted nothing for a while, and have not said that they end."""
        before = f"({self._redis.now() - LISTENING_SECONDS:.6f}"
        return {
            member.partition("\n")[0] for member in self._redis.call("zrangebyscore", self._listening, "-inf", before)
        }

    # -- taking ----------------------------------------------------------------------------------------------------

    def note_taken(self, queue: str) -> None:
        """Note that a worker has taken a message from this queue. Claims do this themselves."""
        self._redis.call("zadd", f"{self._redis.prefix}taken", {queue: self._redis.now()})

    def last_taken(self, queue: str) -> float:
        """When a worker last took a message of ours from this queue; 0 if not within two days."""
        return float(self._redis.call("zscore", f"{self._redis.prefix}taken", queue) or 0.0)

    def beat_times(self, name: str) -> BeatTimes:
        """When beat's messages of this name were sent and taken."""
        fields = [f"{name}:{what}" for what in BeatTimes._fields]
        return BeatTimes(
            *(float(at or 0.0) for at in self._redis.call("hmget", f"{self._redis.prefix}pulses", *fields))
        )

    def note_beat(self, name: str, **times: float) -> None:
        """Note ``sent``, ``taken`` or ``since``."""
        fields = {f"{name}:{what}": f"{at:.6f}" for what, at in times.items()}
        self._redis.call("hset", f"{self._redis.prefix}pulses", mapping=fields)

    def waiting(self, places: Sequence[tuple[str, int]]) -> list[WaitingMessage | None]:
        """The messages of these records (job id, index); None if there is no such job or record, or no message: the
        record of a running job itself is due only until all of its shards are, and that waits in no queue; a parked
        shard has none.
        """
        jobs = list(dict.fromkeys(job_id for job_id, _ in places))
        records = self._redis.hashes(
            [self._redis.key(job_id, index) for job_id, index in places], ("stage", "next_at", "wait", "pubs", "parked")
        )
        found = self._redis.hashes([self._redis.job_key(job_id) for job_id in jobs], ("queue", "input_here"))
        queues = dict(zip(jobs, found, strict=True))
        return [_waiting(record, queues[job_id]) for (job_id, _), record in zip(places, records, strict=True)]

    def requeue(self, job_id: str, index: int, epoch: int, seconds: float, *, small: tuple[int, int]) -> str:
        """What to do with a message that finds no free slot in its worker and would be retried after ``seconds``.

        ``later``; ``small`` if it needs no slot (the argument: the most bytes and rows); ``claim``: let claim decide.
        """
        member = self._redis.member(job_id, index)
        args = (self._redis.prefix, epoch, seconds, self._redis.lease_seconds, member, *small)
        return str(self._redis.run("requeue", self._redis.keys(job_id, index), *args)[0])


def _waiting(record: Any, job: Any) -> WaitingMessage | None:
    """The message of a record, from fields of it and its job; either may be Redis' error for a key of another type."""
    if not isinstance(record, dict) or not isinstance(job, dict) or not job.get("queue"):
        return None
    if record.get("stage") == State.RUNNING or record.get("parked") == "1":
        return None
    try:
        published = float(record["next_at"]) - float(record.get("wait", 0))
    except (KeyError, ValueError):  # the attempt to publish it again reports that it cannot be read
        return None
    times = record.get("pubs", "0")
    return WaitingMessage(job["queue"], published, job.get("input_here") == "1", int(times) if times.isdigit() else 0)
