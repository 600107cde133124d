"""What is known of queues: who listens on them, when something was last taken from them, and what waits in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchpipe.store.schedules import ScheduleRecords

#: A worker says so often on which queues it listens, and counts as gone if it has not for so long. Seconds.
LISTENING_PACE, LISTENING_SECONDS = 10.0, 35.0
#: Records that one call of a script puts off.
_CHUNK = 500


@dataclass(frozen=True)
class Waiting:
    """The newest message of a record: its queue, and when it was published (in the time of the records)."""

    queue: str
    published: float
    own_queue: bool = False  #: that of a ``run``, which brings its worker


class QueueRecords(ScheduleRecords):
    """Two sorted sets by time, pruned as they grow: ``taken`` of queues, ``listening`` of queue, newline, worker."""

    # -- listening -------------------------------------------------------------------------------------------------

    @property
    def _listening(self) -> str:
        return f"{self.prefix}listening"

    def note_listening(self, worker: str, queues: Iterable[str]) -> None:
        """This worker takes from these queues just now."""
        now = self.now()
        pipe = self.client.pipeline(transaction=False)
        if found := {f"{queue}\n{worker}": now for queue in queues}:
            pipe.zadd(self._listening, found)
        pipe.zremrangebyscore(self._listening, "-inf", f"{now - LISTENING_SECONDS:.6f}")
        self._call(pipe.execute)

    def forget_listening(self, worker: str, queues: Iterable[str]) -> None:
        """This worker takes no more from these queues."""
        if members := [f"{queue}\n{worker}" for queue in queues]:
            self._call(self.client.zrem, self._listening, *members)

    def listening(self) -> dict[str, list[str]]:
        """Queue -> names of the workers that listen on it, as they have said themselves."""
        since = f"{self.now() - LISTENING_SECONDS:.6f}"
        found: dict[str, list[str]] = {}
        for member in self._call(self.client.zrangebyscore, self._listening, since, "+inf"):
            queue, _, worker = member.partition("\n")
            found.setdefault(queue, []).append(worker)
        return found

    # -- taking ----------------------------------------------------------------------------------------------------

    def note_taken(self, queue: str) -> None:
        """A worker has taken a message from this queue. Claims say so themselves."""
        self._call(self.client.zadd, f"{self.prefix}taken", {queue: self.now()})

    def last_taken(self, queue: str) -> float:
        """When a worker last took something of ours from this queue; 0: not within two days."""
        return float(self._call(self.client.zscore, f"{self.prefix}taken", queue) or 0.0)

    def pulse(self, name: str) -> tuple[float, float]:
        """When beat's message of this name was last sent, and when a worker last took one; 0: never."""
        sent, taken = self._call(self.client.hmget, f"{self.prefix}pulses", f"{name}:sent", f"{name}:taken")
        return float(sent or 0.0), float(taken or 0.0)

    def note_pulse(self, name: str, **times: float) -> None:
        """Note ``sent`` or ``taken``."""
        fields = {f"{name}:{what}": f"{at:.6f}" for what, at in times.items()}
        self._call(self.client.hset, f"{self.prefix}pulses", mapping=fields)

    def waiting(self, places: Sequence[tuple[str, int]]) -> list[Waiting | None]:
        """The messages of these records (job id, index), None where there is no such job or record."""
        pipe = self.client.pipeline(transaction=False)
        for job_id, index in places:
            pipe.hmget(self._key(job_id, index), "next_at", "wait")
        jobs = list(dict.fromkeys(job_id for job_id, _ in places))
        for job_id in jobs:
            pipe.hmget(self._job_key(job_id), "queue", "input_here")
        answers = self._call(pipe.execute) if places else []
        queues = dict(zip(jobs, answers[len(places) :], strict=True))
        found: list[Waiting | None] = []
        for (job_id, _), (next_at, wait) in zip(places, answers[: len(places)], strict=True):
            queue, own = queues[job_id]
            known = queue and next_at is not None
            found.append(Waiting(queue, float(next_at) - float(wait or 0), own == "1") if known else None)
        return found

    def bounce(self, job_id: str, index: int, epoch: int, seconds: float, *, small: tuple[int, int]) -> str:
        """What becomes of a message that finds no free slot in its worker and would come back after ``seconds``.

        ``later``; ``small`` (``small``: bytes and rows of a shard at most): it needs none; ``claim``: that says more.
        """
        member = self._member(job_id, index)
        args = (self.prefix, epoch, seconds, self.lease_seconds, member, *small)
        return str(self._run("bounce", self._keys(job_id, index), *args)[0])

    def look_later(self, places: Sequence[tuple[str, int]], seconds: float) -> None:
        """Nothing of these overdue records is lost: they are looked at again after so long."""
        members = [self._member(job_id, index) for job_id, index in places]
        for start in range(0, len(members), _CHUNK):
            self._run("look_later", [f"{self.prefix}due"], seconds, *members[start : start + _CHUNK])


__all__ = ["LISTENING_PACE", "LISTENING_SECONDS", "QueueRecords", "Waiting"]
