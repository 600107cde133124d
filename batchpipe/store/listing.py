"""Many records at once: lists of jobs, shards of a job, the due set. An unreadable record does not end them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, cast

import redis

from batchpipe.errors import RecordUnreadable, StoreUnavailable
from batchpipe.model.records import JobRecord, Problem, ShardRecord, State
from batchpipe.store.reading import Records, decoded, is_of_record, name_once

logger = logging.getLogger(__name__)

#: Records that are read in one pipeline: of all shards of a job, and of a list of jobs.
READ_AT_ONCE, LISTED_AT_ONCE = 1_000, 200
#: How long an unreadable record is left alone.
ASIDE_SECONDS = 1_800.0


class Lists(Records):
    """Reads many records at once."""

    def job_of_batch(self, batch_id: str) -> tuple[str, int] | None:
        """(job id, shard index) of a recorded batch."""
        member = self._call(self.client.get, f"{self.prefix}batch:{batch_id}")
        return parse_member(member) if member else None

    def iter_shards(
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
            for index, found in zip(indexes, self._hashes([self._key(job.id, i) for i in indexes], names), strict=True):
                try:
                    if shard := decoded(ShardRecord, found, f"{job.id}, shard {index}"):
                        yield shard
                except RecordUnreadable as error:
                    if bad == "raise":
                        raise
                    problem = Problem(code=error.code, message=name_once(error))
                    yield ShardRecord(job=job.id, index=index, stage="unreadable", trouble=problem)

    def list_jobs(self, *, state: State | None = None, limit: int = 100) -> list[JobRecord]:
        """Newest first. ``cancelling`` lists the jobs that are being cancelled.

        An unreadable record is shown as a job with the error ``record_unreadable``.
        """
        index = f"{self.prefix}jobs:{state.value}" if state is not None else f"{self.prefix}jobs"
        found: list[JobRecord] = []
        expired: list[str] = []
        for start in range(0, 1_000_000, LISTED_AT_ONCE):
            ids = self._call(self.client.zrevrange, index, start, start + LISTED_AT_ONCE - 1)
            for job_id, fields in zip(ids, self._hashes([self._job_key(job_id) for job_id in ids]), strict=True):
                job = _shown(job_id, fields, state)
                if job is None:
                    expired.append(job_id)
                elif state in (None, job.state):
                    found.append(job)
            if len(found) >= limit or len(ids) < LISTED_AT_ONCE:
                break
        if expired:  # only now: removing them while paging by rank would skip others
            with suppress(StoreUnavailable):  # a list can be read from a replica, too
                self._call(self.client.zrem, index, *expired)
        return found[:limit]

    def _hashes(self, keys: Sequence[str], names: Sequence[str] = ()) -> list[Any]:
        """These hashes, or these fields of them, read in one go; for a key that is not a hash, Redis' error."""
        if not keys:
            return []
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.hmget(key, list(names)) if names else pipe.hgetall(key)
        answers = self._call(pipe.execute, raise_on_error=False)
        for answer in answers:
            if isinstance(answer, redis.RedisError) and not is_of_record(answer):
                raise self._failed(answer) from answer
        if not names:
            return cast("list[Any]", answers)
        return [
            {name: value for name, value in zip(names, answer, strict=True) if value is not None}
            if isinstance(answer, list)
            else answer
            for answer in answers
        ]

    def open_jobs(self, account: str) -> Iterator[dict[str, int]]:
        """Ids of an account's jobs that may have shards to do, each with their number, a page at a time.

        A job that changes its state in between may come twice, but none is skipped.
        """
        index, cursor = f"{self.prefix}jobs:{State.RUNNING.value}", 0
        while True:
            cursor, found = self._call(self.client.zscan, index, cursor, count=LISTED_AT_ONCE)
            ids = [job_id for job_id, _ in found]
            hashes = self._hashes([self._job_key(job_id) for job_id in ids], ("account", "shards"))
            yield {
                job_id: int(fields["shards"])
                for job_id, fields in zip(ids, hashes, strict=True)
                if isinstance(fields, dict)
                and fields.get("account", "default") == account
                and fields.get("shards", "0").isdigit()
                and int(fields.get("shards", "0"))
            }
            if not cursor:
                return

    def closed(self, job_ids: Sequence[str]) -> dict[str, bool]:
        """For those of these jobs that are known here, whether they are closed."""
        found = self._hashes([self._job_key(job_id) for job_id in job_ids], ("id", "closed"))
        pairs = zip(job_ids, found, strict=True)
        return {job_id: fields.get("closed") == "1" for job_id, fields in pairs if fields and isinstance(fields, dict)}

    def prune_lists(self, *, most: int = LISTED_AT_ONCE) -> int:
        """Remove jobs with expired records from each list, checking the next ``most`` of those that are old enough.

        Returns how many were removed. Each call goes on where the last one ended, and starts over at the end.
        """
        before, marks = self.now() - self.ttl_seconds, f"{self.prefix}pruned"
        names = ["jobs", *(f"jobs:{state.value}" for state in State)]
        at = {name: int(mark) for name, mark in self._call(self.client.hgetall, marks).items() if mark.isdigit()}
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.zrangebyscore(self.prefix + name, "-inf", f"{before:.6f}", start=at.get(name, 0), num=most)
        listed = dict(zip(names, self._call(pipe.execute), strict=True))
        jobs = sorted({job_id for ids in listed.values() for job_id in ids})
        for job_id in jobs:
            pipe.exists(self._job_key(job_id))
        there = dict(zip(jobs, self._call(pipe.execute), strict=True)) if jobs else {}
        gone = 0
        for name, ids in listed.items():
            expired = [job_id for job_id in ids if not there[job_id]]
            if expired:
                pipe.zrem(self.prefix + name, *expired)
            on = at.get(name, 0) + len(ids) - len(expired) if len(ids) == most else 0
            if on != at.get(name, 0):
                pipe.hset(marks, name, str(on))
            gone += len(expired)
        if len(pipe):
            self._call(pipe.execute)
        return gone

    def due(self, limit: int = 1_000) -> list[tuple[str, int]]:
        """(job id, index) of overdue records, the longest overdue first."""
        members = self._call(
            self.client.zrangebyscore, f"{self.prefix}due", "-inf", f"{self.now():.6f}", start=0, num=limit
        )
        return self._places(members)

    def unfinished(self, limit: int = 1_000) -> list[tuple[str, int]]:
        """(job id, index) of open records, also of ended jobs that are not closed; by due time."""
        return self._places(self._call(self.client.zrange, f"{self.prefix}due", 0, limit - 1))

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
                    self._call(self.client.zrem, f"{self.prefix}due", member)
        return found

    def set_aside(self, job_id: str, index: int) -> None:
        """Look at an unreadable record again later: at the head of the due set it would be in the way."""
        later = self.now() + ASIDE_SECONDS
        self._call(self.client.zadd, f"{self.prefix}due", {self._member(job_id, index): later}, xx=True)

    def shards_of(self, places: Sequence[tuple[str, int]]) -> list[ShardRecord | None]:
        """The shards at these places (job id, index), read in one go; None if there is none, or it cannot be read."""
        found: list[ShardRecord | None] = []
        keys = [self._key(job_id, index) for job_id, index in places]
        for (job_id, index), fields in zip(places, self._hashes(keys), strict=True):
            try:
                found.append(decoded(ShardRecord, fields, f"{job_id}, shard {index}"))
            except RecordUnreadable as error:
                name_once(error)
                found.append(None)
        return found

    def shards_of_batches(self, account: str, batch_ids: Sequence[str]) -> dict[str, ShardRecord]:
        """Batch -> shard, for those of these batches that a record of this account names; read in one go."""
        pipe = self.client.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipe.get(f"{self.prefix}batch:{batch_id}")
        members = self._call(pipe.execute) if batch_ids else []
        places = {name: parse_member(found) for name, found in zip(batch_ids, members, strict=True) if found}
        pipe = self.client.pipeline(transaction=False)
        for job_id, _ in places.values():
            pipe.hget(self._job_key(job_id), "account")
        accounts = self._call(pipe.execute) if places else []
        keys = [self._key(*place) for place in places.values()]  # none may be skipped: it might be the owner
        shards = [decoded(ShardRecord, fields, key) for key, fields in zip(keys, self._hashes(keys), strict=True)]
        return {
            name: shard
            for name, shard, of in zip(places, shards, accounts, strict=True)
            if shard is not None and of == account and name in (shard.batch_id, *shard.spent)
        }


def _shown(job_id: str, found: Any, state: State | None) -> JobRecord | None:
    try:
        return decoded(JobRecord, found, job_id)
    except RecordUnreadable as error:
        stored = state or State.PENDING
        if isinstance(found, Mapping) and found.get("stage") in [one.value for one in State]:
            stored = State(found["stage"])
        cancelling = stored is State.CANCELLING
        problem = Problem(code=error.code, message=name_once(error))
        stage = State.RUNNING if cancelling else stored
        return JobRecord(id=job_id, stage=stage.value, cancel=cancelling, error=problem)


def parse_member(member: str) -> tuple[str, int]:
    """The job id and index of a member of the due set."""
    job_id, _, index = member.rpartition("/")
    return job_id, int(index)
