"""The records of shards, and facts about them that are recorded without a lease: their batches, and calls for these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from batchpipe.errors import RecordUnreadable
from batchpipe.model.records import JobRecord, Problem, ShardRecord
from batchpipe.store.connection import Connection
from batchpipe.store.events import events_of
from batchpipe.store.lease import NO_NEWS, Renewal, news_of
from batchpipe.store.records import decoded, encode_changes, encode_value, parse_member
from batchpipe.store.unreadable import log_once

#: Shards that are read in one pipeline.
READ_AT_ONCE = 1_000
#: How many ids from unclear answers to a shard's create calls are kept.
MOST_NAMED = 8


@dataclass(frozen=True)
class Settled:
    """The outcome of recording a batch id: ``ok``, ``late``, ``known``, ``other`` (it is another shard's), or
    ``cancel``: the caller cancels the batch it made. ``told``: a webhook has said already that it has ended."""

    verdict: str
    news: Renewal = NO_NEWS
    told: bool = False


class Shards:
    """Reads shards, and settles which batch belongs to which."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def of_job(
        self,
        job: JobRecord,
        *,
        fields: Sequence[str] = (),
        bad: Literal["raise", "show"] = "raise",
        within: range | None = None,
    ) -> Iterator[ShardRecord]:
        """All shards of a job, or those ``within`` some indexes, in their order, read several hundred at a time.

        ``fields``: only these, as they are stored; all others have their defaults. ``bad``: an unreadable record is
        raised as RecordUnreadable, for steps, which must not skip it; or shown as a shard in trouble, for lists.
        """
        names = [*dict.fromkeys(("job", "index", "stage", *fields))] if fields else []
        wanted = range(job.shards) if within is None else within[: max(job.shards - within.start, 0)]
        for start in range(0, len(wanted), READ_AT_ONCE):
            indexes = wanted[start : start + READ_AT_ONCE]
            for index, found in zip(
                indexes, self._redis.hashes([self._redis.key(job.id, i) for i in indexes], names), strict=True
            ):
                try:
                    if shard := decoded(ShardRecord, found, f"{job.id}, shard {index}"):
                        yield shard
                except RecordUnreadable as error:
                    if bad == "raise":
                        raise
                    problem = Problem(code=error.code, message=log_once(error))
                    yield ShardRecord(job=job.id, index=index, stage="unreadable", trouble=problem)

    def at(self, places: Sequence[tuple[str, int]]) -> list[ShardRecord | None]:
        """The shards at these places (job id, index), read in one go; None if there is none, or it cannot be read."""
        found: list[ShardRecord | None] = []
        keys = [self._redis.key(job_id, index) for job_id, index in places]
        for (job_id, index), fields in zip(places, self._redis.hashes(keys), strict=True):
            try:
                found.append(decoded(ShardRecord, fields, f"{job_id}, shard {index}"))
            except RecordUnreadable as error:
                log_once(error)
                found.append(None)
        return found

    def place_of_batch(self, batch_id: str) -> tuple[str, int] | None:
        """(job id, shard index) of a recorded batch."""
        member = self._redis.call("get", f"{self._redis.prefix}batch:{batch_id}")
        return parse_member(member) if member else None

    def of_batches(self, account: str, batch_ids: Sequence[str]) -> dict[str, ShardRecord]:
        """Batch -> shard, for those of these batches that a record of this account names; read in one go."""
        pipe = self._redis.pipeline()
        for batch_id in batch_ids:
            pipe.get(f"{self._redis.prefix}batch:{batch_id}")
        members = self._redis.execute(pipe) if batch_ids else []
        places = {name: parse_member(found) for name, found in zip(batch_ids, members, strict=True) if found}
        pipe = self._redis.pipeline()
        for job_id, _ in places.values():
            pipe.hget(self._redis.job_key(job_id), "account")
        accounts = self._redis.execute(pipe) if places else []
        keys = [self._redis.key(*place) for place in places.values()]  # none may be skipped: it might be the owner
        shards = [decoded(ShardRecord, fields, key) for key, fields in zip(keys, self._redis.hashes(keys), strict=True)]
        return {
            name: shard
            for name, shard, of in zip(places, shards, accounts, strict=True)
            if shard is not None and of == account and name in (shard.batch_id, *shard.spent)
        }

    def settle(
        self,
        shard: ShardRecord,
        batch_id: str,
        *,
        token: str | None,
        after: float,
        changes: Mapping[str, Any],
        sure: bool = False,
        made_at: float | None = None,
        events: Iterable[tuple[str, Mapping[str, Any]]] = (),
    ) -> Settled:
        """Record the id of a batch made or found under the shard's current key. Needs no lease.

        ``sure``: the batch itself shows our key or file; else one that another record names is that shard's.
        ``made_at``: when the batch was made, as the provider says. ``events``: for the job's log, if it is recorded.
        """
        answer = self._redis.run(
            "settle",
            self._redis.keys(shard.job, shard.index),
            self._redis.prefix,
            self._redis.member(shard.job, shard.index),
            token or "",
            shard.key,
            batch_id,
            after,
            self._redis.lease_seconds,
            "1" if sure else "0",
            "" if made_at is None else f"{made_at:.6f}",
            events_of(events),
            *encode_changes(changes),
        )
        if len(answer) == 1:
            return Settled(answer[0])
        return Settled(answer[0], news_of(*answer[1:3]), told=bool(int(answer[3])))

    def withdraw_call(self, shard: ShardRecord, call: str) -> None:
        """A call was clearly refused or never made. Needs no lease."""
        keys, member = self._redis.keys(shard.job, shard.index), self._redis.member(shard.job, shard.index)
        self._redis.run("withdraw", keys, self._redis.prefix, member, shard.key, call)

    def record_named_batches(self, shard: ShardRecord, batch_ids: Mapping[str, bool]) -> None:
        """Keep ids that an unclear answer to a create call named (True: was about). Needs no lease."""
        named = orjson.dumps(dict(batch_ids)).decode()
        self._redis.run("record_named_batches", self._redis.keys(shard.job, shard.index), shard.key, MOST_NAMED, named)

    def record_batch_status(self, shard: ShardRecord, batch_id: str, changes: Mapping[str, Any]) -> bool:
        """Note what a list shows of a shard's batch. Returns False if the shard no longer waits for it."""
        member = self._redis.member(shard.job, shard.index)
        args = (self._redis.prefix, member, batch_id, *encode_changes(changes))
        return bool(self._redis.run("record_batch_status", self._redis.keys(shard.job, shard.index), *args)[0] == "ok")

    def record_cancelled_elsewhere(self, shard: ShardRecord, mode: str, problem: Problem) -> bool:
        """Note that a shard's batch was cancelled elsewhere; ``mode`` says how the job goes on.

        Needs no lease. Returns whether that is new.
        """
        reason = encode_value(problem)
        return bool(
            self._redis.run("record_cancelled_elsewhere", self._redis.keys(shard.job, shard.index), mode, reason)[0]
            == "ok"
        )
