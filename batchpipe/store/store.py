"""Claim, advance, settle, raise and the rest of the protocol, as Python methods over the Lua scripts."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from batchpipe.config.limits import LONGEST_GROWTH
from batchpipe.errors import JobNotFound, LeaseLost, OutputInUse
from batchpipe.model.records import JOB, JobRecord, Move, Problem, ShardRecord, State
from batchpipe.store.leases import NO_NEWS, ClaimDenied, JobLease, Lease, Renewal, ShardLease, host_clock
from batchpipe.store.many import ManyShards
from batchpipe.store.records import decode, encode_changes, encode_record, encode_value

#: Which messages a new epoch may void (see ``Store.bump_epoch``).
When = Literal["overdue", "asleep", "always"]


#: How long an alias is kept after the records of an ended job: as long as a job may take.
ALIAS_SECONDS = 60 * 86_400
#: How late an abandoned submit may still reach Redis.
GIVEN_UP_SECONDS = 86_400


#: How many ids from unclear answers to a shard's create calls are kept.
MOST_NAMED = 8


@dataclass(frozen=True)
class Raised:
    """A new epoch, under which the caller publishes; ``old_ids`` are the Celery ids of the void messages."""

    epoch: int
    stage: str
    queue: str
    old_ids: list[str]


@dataclass(frozen=True)
class Settled:
    """The outcome of recording a batch id: ``ok``, ``late``, ``known``, ``other`` (it is another shard's), or
    ``cancel``: the caller cancels the batch it made."""

    verdict: str
    news: Renewal = NO_NEWS


def new_task_ids(count: int) -> list[str]:
    """Fresh Celery task ids: stored with the epoch, before anything is published."""
    return [str(uuid.uuid4()) for _ in range(count)]


class Store(ManyShards):
    """The protocol of claim, advance, settle and raise, over all records under one prefix of one Redis."""

    # -- a job's beginning and end ---------------------------------------------------------------------------------

    def submit(self, job: JobRecord, *, again: str = "", alias: bool = False) -> tuple[str, bool]:
        """Record a job, due at once. Returns (id, True), or (the first job's id, False) if its key is taken.

        ``again``: "1" lets it take the key from any job, a job's id from that one only. ``alias``: the id was already
        given out; if the key is taken, the id refers to the first job from now on.
        Raises OutputInUse if its output is that of another job that is not closed.
        """
        key = f"{self.prefix}key:{job.key}" if job.key else self._job_key(job.id)
        verdict, job_id, *stage = self._run(
            "submit",
            [*self._keys(job.id, JOB), key],
            self.prefix,
            job.id,
            self._member(job.id, JOB),
            self.lease_seconds,
            again,
            self.ttl_seconds + ALIAS_SECONDS if alias else 0,
            orjson.dumps(job.owns).decode(),
            *encode_record(job),
        )
        if verdict == "output":
            raise OutputInUse(output_in_use(job.output, job_id, stage[0]))
        return job_id, verdict == "ok"

    def give_up(self, job_id: str) -> bool:
        """After a submit without an answer: True if the job is not recorded, and from now on cannot be."""
        args = (self.prefix, job_id, GIVEN_UP_SECONDS)
        return bool(self._run("give_up", [self._job_key(job_id)], *args)[0] == "ok")

    def cancel(self, job_id: str, *, waking: int | None = None) -> tuple[bool, int]:
        """Set the cancel flag. Returns (False if the job had ended, number of its shards). Raises JobNotFound.

        ``waking``: how many shards the caller wakes; the sweep wakes the others. None: the caller wakes all.
        """
        args = (self.prefix, job_id, _waking(waking))
        answer = self._run("cancel", self._keys(job_id, JOB), *args)
        if answer[0] == "gone":
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        return answer[0] == "ok", int(answer[1])

    def finish(self, lease: JobLease, state: State, changes: Mapping[str, Any]) -> State:
        """Record the end state; the lease is kept for notifications. Returns that state: the cancel flag wins."""
        return State(self._fenced("finish", lease, lease.token, state.value, *encode_changes(changes))[1])

    def own(self, lease: JobLease, names: Sequence[str]) -> None:
        """Claim names of a job's output until it is closed. Raises OutputInUse (none is claimed), LeaseLost."""
        owns = list(dict.fromkeys([*lease.job.owns, *names]))
        args = (self.prefix, lease.job.id, lease.token, orjson.dumps(owns).decode())
        verdict, *owner = self._run("own", self._keys(lease.job.id, JOB), *args)
        if verdict == "lost":
            raise LeaseLost
        if verdict == "output":
            raise OutputInUse(output_in_use(lease.job.output, *owner))
        lease.job = lease.job.evolve(owns=owns)

    def moved(self, job_id: str, results: str, real: str) -> None:
        """Note where the result files of a closed job lie now (``real``: the same without links). Does nothing if the
        job is not known here.
        """
        self._run("moved", self._keys(job_id, JOB), results, real)

    # -- turns -----------------------------------------------------------------------------------------------------

    def claim_job(
        self, job_id: str, epoch: int, stages: Sequence[str], *, deadline: float, enter: str = ""
    ) -> JobLease | ClaimDenied:
        """Take the lease on a job at one of these ``stages``; ``enter`` is its stage from now on.

        It ends after ``deadline`` seconds without progress (``Lease.check``), twice as many after each turn that ran
        into this, at most ``LONGEST_GROWTH`` times as many.
        """
        claimed = self._claim(job_id, JOB, epoch, stages, deadline, enter)
        return claimed if isinstance(claimed, ClaimDenied) else JobLease(**claimed[1])

    def claim_shard(
        self, job_id: str, index: int, epoch: int, stages: Sequence[str], *, deadline: float
    ) -> ShardLease | ClaimDenied:
        """The same for a shard."""
        claimed = self._claim(job_id, index, epoch, stages, deadline, "")
        if isinstance(claimed, ClaimDenied):
            return claimed
        return ShardLease(shard=decode(ShardRecord, claimed[0]), **claimed[1])

    def _claim(
        self, job_id: str, index: int, epoch: int, stages: Sequence[str], deadline: float, enter: str
    ) -> tuple[Any, dict[str, Any]] | ClaimDenied:
        """The record as it is stored, and the fields of its lease."""
        token, before = uuid.uuid4().hex, host_clock()
        answer = self._run(
            "claim",
            self._keys(job_id, index),
            self.prefix,
            job_id,
            epoch,
            f",{','.join(stages)},",
            enter,
            token,
            self.lease_seconds,
            deadline,
            LONGEST_GROWTH * deadline,
            self._member(job_id, index),
        )
        if answer[0] != "ok":
            return ClaimDenied(answer[0], float(answer[1]) if len(answer) > 1 else 0.0)
        job = decode(JobRecord, answer[2])
        return answer[1], {
            "store": self,
            "job": job,
            "token": token,
            "seconds": float(answer[3]),
            "confirmed": before,
            "news": Renewal(cancel=job.cancel),
            "deadline": float(answer[4]),
            "overran": bool(int(answer[5])),
        }

    def renew(self, lease: Lease) -> tuple[float, Renewal]:
        """Keep a lease. Returns the seconds it now lasts. Raises LeaseLost."""
        answer = self._run(
            "renew",
            self._keys(lease.job.id, lease.index),
            self._member(lease.job.id, lease.index),
            lease.token,
            self.lease_seconds,
            lease.deadline if lease.has_got_on() else 0,
        )
        if answer[0] == "lost":
            raise LeaseLost
        return float(answer[1]), _news(answer[2], answer[3])

    def save(self, lease: Lease, changes: Mapping[str, Any]) -> Renewal:
        """Write fields and keep the lease. Raises LeaseLost."""
        answer = self._run("save", self._keys(lease.job.id, lease.index), lease.token, *encode_changes(changes))
        return _news_or_lost(answer)

    def advance(self, lease: ShardLease, move: Move, *, tries: str, merge_ids: list[str]) -> tuple[Renewal, int]:
        """End a turn. Returns what the holder must know, and the epoch under which to publish merge (0: not now).

        ``tries``: keep (unexpected trouble), refund (expected trouble) or reset (progress). Raises LeaseLost.
        """
        answer = self._fenced(
            "advance",
            lease,
            self._member(lease.job.id, lease.index),
            self._member(lease.job.id, JOB),
            lease.token,
            move.stage.value,
            move.after,
            tries,
            self.lease_seconds,
            merge_ids,
            *encode_changes(move.changes),
        )
        return _news(answer[1], answer[2]), int(answer[3])

    def defer(self, lease: JobLease, after: float, changes: Mapping[str, Any], *, tries: str) -> Renewal:
        """End a turn of the job itself without a new stage: retry after ``after`` seconds."""
        answer = self._fenced(
            "advance",
            lease,
            self._member(lease.job.id, JOB),
            self._member(lease.job.id, JOB),
            lease.token,
            "",
            after,
            tries,
            self.lease_seconds,
            [],
            *encode_changes(changes),
        )
        return _news(answer[1], answer[2])

    def bump_epoch(
        self, job_id: str, index: int, ids: list[str], *, when: When = "always", after: float = 0.0
    ) -> Raised | None:
        """Void a record's messages and take a new epoch for new ones, which run after ``after`` seconds, with their
        task ids. Returns None if not now, or not ever.

        ``when``: only if its message is ``overdue``, also if it is ``asleep`` until its time, or ``always``, even
        while one is under way. If the record is leased, a wake mark is left instead, and the holder publishes.
        """
        answer = self._run(
            "raise",
            self._keys(job_id, index),
            self._member(job_id, index),
            self.lease_seconds,
            orjson.dumps(ids).decode(),
            when,
            after,
        )
        if answer[0] == "undue":
            self.make_due(job_id)
        if answer[0] != "ok":
            return None
        return Raised(int(answer[1]), answer[2], answer[3], orjson.loads(answer[4]))

    def observe(self, shard: ShardRecord, batch_id: str, changes: Mapping[str, Any]) -> bool:
        """Note what a list shows of a shard's batch. Returns False if the shard no longer waits for it."""
        args = (batch_id, *encode_changes(changes))
        return bool(self._run("observe", self._keys(shard.job, shard.index), *args)[0] == "ok")

    def note_trouble(self, job_id: str, index: int, problem: Problem) -> None:
        """Note why a record makes no progress, though nobody holds it. Does nothing if it has ended."""
        self._run("troubled", self._keys(job_id, index), *encode_changes({"trouble": problem}))

    # -- jobs that wait for a person -------------------------------------------------------------------------------

    def hold(self, shard: ShardRecord, mode: str, problem: Problem) -> bool:
        """Note that a shard's batch was cancelled elsewhere; ``mode`` says how the job goes on.

        Needs no lease. Returns whether that is new.
        """
        reason = encode_value(problem)
        return bool(self._run("hold", self._keys(shard.job, shard.index), mode, reason)[0] == "ok")

    def decide(self, job_id: str, decision: Literal["resend", "land"], *, waking: int | None = None) -> tuple[str, int]:
        """End a job's hold. Returns ok, none (it is not held) or ended, and the number of its shards.

        ``waking``: as for ``cancel``. Raises JobNotFound.
        """
        args = (decision, self.prefix, job_id, _waking(waking))
        answer = self._run("decide", self._keys(job_id, JOB), *args)
        if answer[0] == "gone":
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        return answer[0], int(answer[1])

    # -- the paid call ---------------------------------------------------------------------------------------------

    def intend(self, lease: ShardLease) -> Renewal:
        """Record that a create call will be sent under the shard's key; not if the job is held. Raises LeaseLost."""
        keys = self._keys(lease.job.id, lease.index)
        answer = self._run("intent", keys, self.prefix, lease.token, f"{self.host_time():.6f}")
        news = _news_or_lost(answer)
        return Renewal(wake=news.wake, cancel=news.cancel, held=answer[0] == "held")

    def withdraw(self, shard: ShardRecord, call: str) -> None:
        """A call was clearly refused or never made. Needs no lease."""
        self._run("withdraw", self._keys(shard.job, shard.index), shard.key, call)

    def name(self, shard: ShardRecord, batch_ids: Mapping[str, bool]) -> None:
        """Keep ids that an unclear answer to a create call named (True: was about). Needs no lease."""
        named = orjson.dumps(dict(batch_ids)).decode()
        self._run("named", self._keys(shard.job, shard.index), shard.key, MOST_NAMED, named)

    def settle(
        self,
        shard: ShardRecord,
        batch_id: str,
        *,
        token: str | None,
        after: float,
        changes: Mapping[str, Any],
        sure: bool = False,
    ) -> Settled:
        """Record the id of a batch made or found under the shard's current key. Needs no lease.

        ``sure``: the batch itself shows our key or file; else one that another record names is that shard's.
        """
        answer = self._run(
            "settle",
            self._keys(shard.job, shard.index),
            self.prefix,
            self._member(shard.job, shard.index),
            token or "",
            shard.key,
            batch_id,
            after,
            self.lease_seconds,
            "1" if sure else "0",
            *encode_changes(changes),
        )
        return Settled(answer[0], _news(*answer[1:]) if len(answer) > 1 else Renewal())


def _waking(count: int | None) -> int:
    return count if count is not None else 1_000_000_000


def output_in_use(output: str, owner: str, stage: str) -> str:
    """The message about an output of another job, which is at this stage and not closed."""
    if State(stage).ended:
        return (
            f"output {output} belongs to job {owner}, which has ended, but its receivers are not all notified: "
            f"wait for that (batchpipe wait {owner}) or choose another output"
        )
    return (
        f"output {output} belongs to job {owner}, which has not ended: follow it (batchpipe wait {owner}), "
        f"cancel it (batchpipe cancel {owner}) or choose another output"
    )


def _news(wake: Any, cancel: Any) -> Renewal:
    return Renewal(wake=bool(int(wake)), cancel=bool(int(cancel)))


def _news_or_lost(answer: list[Any]) -> Renewal:
    if answer[0] == "lost":
        raise LeaseLost
    return _news(answer[1], answer[2])


__all__ = ["Raised", "Settled", "Store", "When", "new_task_ids", "output_in_use"]
