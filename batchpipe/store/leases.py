"""Leases on records, and all that needs one: the turns of shards and of the job itself, from claim to end."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, cast

import orjson

from batchpipe.config.limits import LONGEST_GROWTH
from batchpipe.errors import LeaseLost, OutputInUse
from batchpipe.model.records import JOB, JobRecord, Move, ShardRecord, Stage, State
from batchpipe.model.stats import Pause
from batchpipe.store.connection import Connection
from batchpipe.store.due import CHUNK, Due
from batchpipe.store.events import LOG_SECONDS, data_of, events_of
from batchpipe.store.jobs import output_in_use
from batchpipe.store.keeper import Keeper
from batchpipe.store.lease import (
    ClaimDenied,
    Following,
    JobLease,
    Lease,
    Renewal,
    RoomWanted,
    ShardLease,
    host_clock,
    news_of,
)
from batchpipe.store.records import chunks, decode, draft, draft_fields, encode_changes

#: Events for the log of a job: the name and the fields of each.
Events = Iterable[tuple[str, Mapping[str, Any]]]
#: Shards of a job, at most, that are planned, or expire, in the script that does the rest.
AT_ONCE = 20


class Leases:
    """Every write here is fenced: who has lost the lease changes nothing, and gets LeaseLost."""

    def __init__(self, connection: Connection, due: Due) -> None:
        self._redis, self._due = connection, due
        self._keeper = Keeper()

    def claim_job(
        self, job_id: str, epoch: int, stages: Sequence[str], *, deadline: float, enter: str = ""
    ) -> JobLease | ClaimDenied:
        """Take the lease on a job at one of these ``stages``; ``enter`` is its stage from now on.

        It ends after ``deadline`` seconds without progress (``Lease.check``), twice as many after each turn that ran
        into this, at most ``LONGEST_GROWTH`` times as many.
        """
        return cast("JobLease | ClaimDenied", self._claim(job_id, JOB, epoch, stages, deadline, enter))

    def claim_shard(
        self, job_id: str, index: int, epoch: int, stages: Sequence[str], *, deadline: float
    ) -> ShardLease | ClaimDenied:
        """The same for a shard."""
        return cast("ShardLease | ClaimDenied", self._claim(job_id, index, epoch, stages, deadline, ""))

    def _claim(
        self, job_id: str, index: int, epoch: int, stages: Sequence[str], deadline: float, enter: str
    ) -> JobLease | ShardLease | ClaimDenied:
        token, before = uuid.uuid4().hex, host_clock()
        answer = self._redis.run(
            "claim",
            self._redis.keys(job_id, index),
            self._redis.prefix,
            job_id,
            epoch,
            f",{','.join(stages)},",
            enter,
            token,
            self._redis.lease_seconds,
            deadline,
            LONGEST_GROWTH * deadline,
            self._redis.member(job_id, index),
        )
        if answer[0] != "ok":
            return ClaimDenied(answer[0], float(answer[1]) if len(answer) > 1 else 0.0)
        return self._granted(answer, index, token, before)

    def _granted(self, answer: list[Any], index: int, token: str, before: float) -> JobLease | ShardLease:
        """The lease that the answer of a granted claim tells of."""
        job = decode(JobRecord, answer[2])
        fields: dict[str, Any] = {
            "renewer": self,
            "keeper": self._keeper,
            "job": job,
            "token": token,
            "seconds": float(answer[3]),
            "confirmed": before,
            "news": Renewal(cancel=job.cancel),
            "deadline": float(answer[4]),
            "overran": bool(int(answer[5])),
            "pause": Pause(float(answer[6]), answer[7], answer[8]) if len(answer) > 6 else None,
        }
        return JobLease(**fields) if index == JOB else ShardLease(shard=decode(ShardRecord, answer[1]), **fields)

    def _wanted(self, following: Following | None, token: str) -> str:
        """What a script is given to claim the next turn of a visit; "" for none."""
        if following is None:
            return ""
        wanted = {
            "stages": f",{','.join(following.stages)},",
            "enter": "",
            "token": token,
            "lease": self._redis.lease_seconds,
            "deadline": following.deadline,
            "longest": LONGEST_GROWTH * following.deadline,
        }
        return orjson.dumps(wanted).decode()

    def renew(self, lease: Lease) -> tuple[float, Renewal]:
        """Keep a lease. Returns the seconds it now lasts. Raises LeaseLost."""
        answer = self._redis.run(
            "renew",
            self._redis.keys(lease.job.id, lease.index),
            self._redis.member(lease.job.id, lease.index),
            lease.token,
            self._redis.lease_seconds,
            lease.deadline if lease.take_progress() else 0,
        )
        if answer[0] == "lost":
            raise LeaseLost
        return float(answer[1]), news_of(answer[2], answer[3])

    def save(self, lease: Lease, changes: Mapping[str, Any]) -> Renewal:
        """Write fields and keep the lease. Raises LeaseLost."""
        answer = self._redis.run(
            "save", self._redis.keys(lease.job.id, lease.index), lease.token, *encode_changes(changes)
        )
        return _news_or_lost(answer)

    def advance(
        self,
        lease: ShardLease,
        move: Move,
        *,
        tries: str,
        merge_ids: list[str],
        following: Following | None = None,
        events: Events = (),
    ) -> tuple[Renewal, int]:
        """End a turn. Returns what the holder must know, and the epoch under which to publish merge (0: not now).

        ``tries``: keep (unexpected trouble), refund (expected trouble) or reset (progress). ``following``: the turn
        that is claimed in the same call, if its time has come (``following`` of the lease); it is that of merge if the
        shard is collected. ``events`` are added to the job's log. Raises LeaseLost.
        """
        token, before = uuid.uuid4().hex, host_clock()
        answer = self._fenced(
            "advance",
            lease,
            self._redis.member(lease.job.id, lease.index),
            self._redis.member(lease.job.id, JOB),
            lease.token,
            move.stage.value,
            move.after,
            tries,
            self._redis.lease_seconds,
            merge_ids,
            self._wanted(following, token),
            events_of(events),
            *encode_changes(move.changes),
        )
        if len(answer) > 5:
            index = JOB if move.stage == Stage.COLLECTED else lease.index
            lease.following = following_lease = self._granted(answer[5], index, token, before)
            if isinstance(following_lease, JobLease) and len(answer) > 6:
                following_lease.shards = [decode(ShardRecord, answer[6])]
        return replace(news_of(answer[1], answer[2]), granted=int(answer[4])), int(answer[3])

    def defer(self, lease: JobLease, after: float, changes: Mapping[str, Any], *, tries: str) -> Renewal:
        """End a turn of the job itself without a new stage: retry after ``after`` seconds."""
        answer = self._fenced(
            "advance",
            lease,
            self._redis.member(lease.job.id, JOB),
            self._redis.member(lease.job.id, JOB),
            lease.token,
            "",
            after,
            tries,
            self._redis.lease_seconds,
            [],
            "",
            "",
            *encode_changes(changes),
        )
        return news_of(answer[1], answer[2])

    def record_intent(
        self, lease: ShardLease, *, seconds: float = 0.0, identity: str = "", admitted: bool = False
    ) -> Renewal:
        """Record that a create call will be sent under the shard's key; not if the job is held. Raises LeaseLost.

        ``seconds``: how long it may be under way, at most, if its worker vanishes. ``identity``: whose key it is made
        with (``Provider.identity``). ``admitted``: nor if the shard holds no room at the provider, or too much is held
        and others have sent theirs. With it goes what the lease has ``unrecorded``.
        """
        keys, member = self._redis.keys(lease.job.id, lease.index), self._redis.member(lease.job.id, lease.index)
        host_time = f"{self._redis.host_time():.6f}"
        args = (lease.token, host_time, member, seconds, identity, "1" if admitted else "0")
        done = lease.unrecorded
        told = (done.stage.value, events_of(done.events), *encode_changes(done.changes)) if done else ("", "")
        answer = self._redis.run("intent", keys, self._redis.prefix, *args, *told)
        news, verdict = _news_or_lost(answer), answer[0]
        if verdict == "ok":
            lease.unrecorded = None
        return Renewal(
            republish=news.republish, cancel=news.cancel, held=verdict == "held", no_hold=verdict == "no_hold"
        )

    def plan(
        self,
        lease: JobLease,
        changes: Mapping[str, Any],
        shards: Iterable[ShardRecord],
        ids: list[str],
        *,
        following: Following | None = None,
        room: RoomWanted | None = None,
        events: Events = (),
    ) -> tuple[int, int]:
        """Plan a round under the job's lease. Returns the number of its shards, and 0 or the epoch under which to
        publish merge: then the job is being cancelled, and nothing was planned.

        The records are first written where nobody sees them, then made visible by one script, and then made due. A turn
        that plans again after a crash overwrites them. Ends the lease's renewals. ``following``: the first turn of the
        shard, if there is but one, which is claimed in the same call, and given ``room`` in it, if that is there at
        once (``admitted`` of the lease). ``events`` are added to the job's log. Raises
        LeaseLost.
        """
        left = iter(shards)
        begin = list(islice(left, AT_ONCE + 1))
        if len(begin) <= AT_ONCE:
            lease.stop()
            only = begin[0] if len(begin) == 1 else None
            round_ = {"count": len(begin), "drafts": [draft_fields(one) for one in begin]}
            if only is not None and following is not None and room is not None:
                round_ |= {"needs": dict(room.needs), "limits": dict(room.limits)}
            return self._planned(lease, changes, round_, ids, events, only, following)
        count, going = 0, True
        for chunk in chunks(chain(begin, left), CHUNK):
            if count:
                lease.check()
            count += len(chunk)
            if going:
                going = self._fenced("draft_shards", lease, lease.token, *map(draft, chunk))[0] != "cancel"
        lease.stop()
        planned = self._planned(lease, changes, {"count": count}, ids, events)
        if planned[0]:
            self._due.make_due(lease.job.id)
        return planned

    def _planned(
        self,
        lease: JobLease,
        changes: Mapping[str, Any],
        round_: Mapping[str, Any],
        ids: list[str],
        events: Events,
        only: ShardRecord | None = None,
        following: Following | None = None,
    ) -> tuple[int, int]:
        """Call the script that makes a round visible. ``only``: its one shard."""
        token, before = uuid.uuid4().hex, host_clock()
        answer = self._fenced(
            "plan",
            lease,
            self._redis.member(lease.job.id, JOB),
            lease.token,
            self._redis.lease_seconds,
            orjson.dumps(round_).decode(),
            ids,
            self._wanted(following if only is not None else None, token),
            events_of(events),
            LOG_SECONDS,
            *encode_changes(changes),
        )
        if answer[0] == "cancel":
            return 0, int(answer[1])
        if only is not None and len(answer) > 2:
            begun = cast(ShardLease, self._granted(answer[2], only.index, token, before))
            begun.admitted = bool(int(answer[1]))
            lease.following = begun
        return round_["count"], 0

    def claim_output(self, lease: JobLease, names: Sequence[str]) -> None:
        """Claim names of a job's output until it is closed. Raises OutputInUse (none is claimed), LeaseLost.

        What the job owns already stays its own; one that is landed may have left its output to another.
        """
        if set(names) <= set(lease.job.owns) and not lease.job.send_no_more:
            lease.check()
            return
        owns = list(dict.fromkeys([*lease.job.owns, *names]))
        args = (self._redis.prefix, lease.job.id, lease.token, orjson.dumps(owns).decode())
        verdict, *owner = self._redis.run("claim_output", self._redis.keys(lease.job.id, JOB), *args)
        if verdict == "lost":
            raise LeaseLost
        if verdict == "output":
            raise OutputInUse(output_in_use(lease.job.output, *owner))
        lease.job = lease.job.evolve(owns=owns)

    def finish(
        self, lease: JobLease, state: State, changes: Mapping[str, Any], said: Mapping[str, Any] | None = None
    ) -> State:
        """Record the end state; the lease is kept for notifications, and has the job as it is then. Returns that state:
        the cancel flag wins. ``said``: what the event of the end in the job's log tells besides.
        """
        event = data_of(said or {})
        answer = self._fenced("record_job_end", lease, lease.token, state.value, event, *encode_changes(changes))
        lease.job = decode(JobRecord, answer[2])
        return State(answer[1])

    def close_job(self, lease: JobLease) -> None:
        """Close an ended job when nothing is left to do: its output is free, it leaves the due set, its records expire.

        Ends the lease's renewals. Raises LeaseLost.
        """
        args = (self._redis.member(lease.job.id, JOB), lease.token, self._redis.ttl_seconds)
        if lease.job.shards <= AT_ONCE:
            lease.stop()
            if self._fenced("close_job", lease, *args, AT_ONCE)[0] == "ok":
                return
        first, count = 0, 1
        while first < count:
            if first:
                lease.check()
            answer = self._fenced("expire_shards", lease, lease.token, self._redis.ttl_seconds, first, CHUNK)
            first, count = first + CHUNK, int(answer[1])
        lease.stop()
        self._fenced("close_job", lease, *args, -1)

    def _fenced(self, name: str, lease: Lease, *args: object) -> list[Any]:
        flat = [orjson.dumps(arg).decode() if isinstance(arg, list) else arg for arg in args]
        answer = self._redis.run(
            name, self._redis.keys(lease.job.id, lease.index), self._redis.prefix, lease.job.id, *flat
        )
        if answer[0] == "lost":
            raise LeaseLost
        return answer


def _news_or_lost(answer: list[Any]) -> Renewal:
    if answer[0] == "lost":
        raise LeaseLost
    return news_of(answer[1], answer[2])
