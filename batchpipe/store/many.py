"""Operations on all shards of a job: a hundred in each script, because Redis serves nobody else while one runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import orjson

from batchpipe.errors import JobNotFound, LeaseLost
from batchpipe.model.records import JOB, JobRecord, ShardRecord
from batchpipe.store.leases import JobLease, Lease
from batchpipe.store.queues import QueueRecords
from batchpipe.store.records import encode_changes, encode_record, encode_shard

T = TypeVar("T")

#: Shards that one script writes or looks at: a few milliseconds.
CHUNK = 100


class Wakes(NamedTuple):
    """Shards of a job that are to be woken: from an index up to another one, which is excluded."""

    job: str
    when: str
    first: int
    last: int


class ManyShards(QueueRecords):
    """Plan, restore, land, wake and expire shards, however many there are."""

    def plan(
        self, lease: JobLease, changes: Mapping[str, Any], shards: Iterable[ShardRecord], ids: list[str]
    ) -> tuple[int, int]:
        """Plan a round under the job's lease. Returns the number of its shards, and 0 or the epoch under which to
        publish merge: then the job is being cancelled, and nothing was planned.

        The records are first written where nobody sees them, then made visible by one script, and then made due. A turn
        that plans again after a crash overwrites them. Ends the lease's renewals. Raises LeaseLost.
        """
        count, going = 0, True
        for chunk in _chunks(shards):
            if count:
                lease.check()
            count += len(chunk)
            if going:
                going = self._fenced("draft", lease, lease.token, *map(_draft, chunk))[0] != "cancel"
        lease.stop()
        member = self._member(lease.job.id, JOB)
        fields = encode_changes(changes)
        answer = self._fenced("plan", lease, member, lease.token, self.lease_seconds, ids, count, *fields)
        if answer[0] == "cancel":
            return 0, int(answer[1])
        self.make_due(lease.job.id)
        return count, 0

    def make_due(self, job_id: str) -> None:
        """Continue to make the shards of a running job due, if that is not done. Any process may do so at any time."""
        args = (self.prefix, job_id, self.lease_seconds, CHUNK)
        while int(self._run("make_due", self._keys(job_id, JOB), *args)[0]):
            pass

    def restore(self, job: JobRecord, shards: Iterable[ShardRecord]) -> tuple[str, str]:
        """Write the records of a running job that Redis has lost; its unfinished shards are due at once.

        Returns ``ok``, ``known`` (nothing was written), or ``output`` and the job, not closed, that owns the output.
        """
        token = uuid.uuid4().hex
        for chunk in _chunks(shards):
            args = (self.prefix, job.id, token, self.ttl_seconds, *map(_draft, chunk))
            if self._run("restore_draft", self._keys(job.id, JOB), *args)[0] == "known":
                return "known", ""
        key = f"{self.prefix}key:{job.key}" if job.key else self._job_key(job.id)
        owns = orjson.dumps(job.owns).decode()
        answer = self._run(
            "restore", [*self._keys(job.id, JOB), key], self.prefix, job.id, token, owns, *encode_record(job)
        )
        if answer[0] == "ok":
            self.make_due(job.id)
        return answer[0], answer[1] if len(answer) > 1 else ""

    def land(self, job_id: str, indexes: Iterable[int], *, in_output: bool = True) -> str:
        """Reopen an ended job to collect these shards, which are due at once; it is running then.

        They are marked first, which changes nothing, then one script makes it running, and `make_due` takes them up.
        ``in_output``: its results go to its output; else they lie elsewhere, and the output may be another job's.
        Returns ok, or why not: running, not_closed, none, output (another job, not closed, writes there).
        Raises JobNotFound.
        """
        keys, verdict = self._keys(job_id, JOB), "ok"
        for chunk in _chunks(indexes):
            verdict = str(self._run("land_mark", keys, self.prefix, job_id, *chunk)[0])
            if verdict != "ok":
                break
        else:
            args = (self.prefix, job_id, uuid.uuid4().hex, self.lease_seconds, int(in_output))
            verdict = str(self._run("land", keys, *args)[0])
        if verdict == "gone":
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        self.make_due(job_id)
        return verdict

    def close_job(self, lease: JobLease) -> None:
        """Close an ended job when nothing is left to do: its output is free, it leaves the due set, its records expire.

        Ends the lease's renewals. Raises LeaseLost.
        """
        first, count = 0, 1
        while first < count:
            if first:
                lease.check()
            answer = self._fenced("expire", lease, lease.token, self.ttl_seconds, first, CHUNK)
            first, count = first + CHUNK, int(answer[1])
        lease.stop()
        self._fenced("close_job", lease, self._member(lease.job.id, JOB), lease.token, self.ttl_seconds)

    def leave_wakes(self, first: Mapping[str, int], when: str) -> None:
        """Let the sweeps wake shards of these jobs, each from an index on. ``person``: only those that wait for a
        person; other values as for ``bump_epoch``.
        """
        self._call(self.client.zadd, f"{self.prefix}waking", {f"{job_id}/{when}": at for job_id, at in first.items()})

    def take_wakes(self, most: int) -> Wakes | None:
        """The next shards, at most so many, that a cancel, a resume or the end of a hold has left to be woken."""
        found = self._run("take_wakes", [f"{self.prefix}waking"], self.prefix, most)
        return Wakes(found[0], found[1], int(found[2]), int(found[3])) if found else None

    def _fenced(self, name: str, lease: Lease, *args: object) -> list[Any]:
        flat = [orjson.dumps(arg).decode() if isinstance(arg, list) else arg for arg in args]
        answer = self._run(name, self._keys(lease.job.id, lease.index), self.prefix, lease.job.id, *flat)
        if answer[0] == "lost":
            raise LeaseLost
        return answer


def _draft(shard: ShardRecord) -> str:
    """A shard as a single argument of a script, because Redis limits the number of arguments."""
    return orjson.dumps([str(shard.index), *encode_shard(shard)]).decode()


def _chunks(many: Iterable[T]) -> Iterator[list[T]]:
    found = iter(many)
    while chunk := list(islice(found, CHUNK)):
        yield chunk
