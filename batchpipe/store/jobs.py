"""The records of jobs, and what is done to a job by those who hold no lease on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson

from batchpipe.errors import JobNotFound, OutputInUse, RecordUnreadable, StoreUnavailable
from batchpipe.model.records import JOB, JobRecord, Problem, ShardRecord, State
from batchpipe.store.connection import Connection
from batchpipe.store.due import CHUNK, Due
from batchpipe.store.events import LOG_SECONDS, data_of
from batchpipe.store.queues import LISTENING_SECONDS
from batchpipe.store.records import chunks, decode, decoded, draft, encode_record
from batchpipe.store.unreadable import log_once

#: How long an alias is kept after the records of an ended job: as long as a job may take.
ALIAS_SECONDS = 60 * 86_400
#: Jobs whose account a process remembers.
REMEMBERED = 10_000
#: Jobs that are read in one pipeline.
LISTED_AT_ONCE = 200


@dataclass(frozen=True)
class Recorded:
    """What became of a submit: the job's id, or that of the first job with its key."""

    id: str
    is_new: bool
    at: float = 0.0  #: when it was recorded
    is_heard: bool = False  #: a worker listens on its queue, as far as workers have noted it


class Jobs:
    """Submit, read, list, cancel, land and restore jobs."""

    def __init__(self, connection: Connection, due: Due) -> None:
        self._redis, self._due = connection, due
        self._accounts: dict[str, str] = {}

    def submit(self, job: JobRecord, *, replace_job: str = "", alias: bool = False) -> tuple[str, bool]:
        """Record a job, due at once. Returns (id, True), or (the first job's id, False) if its key is taken.

        ``replace_job``: "1" lets it take the key from any job, a job's id from that one only. ``alias``: the id was
        already given out; if the key is taken, the id refers to the first job from now on.
        Raises OutputInUse if its output is that of another job that is not closed.
        """
        recorded = self.record(job, replace_job=replace_job, alias=alias)
        return recorded.id, recorded.is_new

    def record(
        self, job: JobRecord, *, replace_job: str = "", alias: bool = False, event: Mapping[str, Any] | None = None
    ) -> Recorded:
        """``submit``, with the data of the first ``event`` of the job's log, in one call."""
        key = f"{self._redis.prefix}key:{job.key}" if job.key else self._redis.job_key(job.id)
        verdict, job_id, *more = self._redis.run(
            "submit",
            [*self._redis.keys(job.id, JOB), key],
            self._redis.prefix,
            job.id,
            self._redis.member(job.id, JOB),
            self._redis.lease_seconds,
            replace_job,
            self._redis.ttl_seconds + ALIAS_SECONDS if alias else 0,
            orjson.dumps(job.owns).decode(),
            data_of(event) if event is not None else "",
            LOG_SECONDS,
            LISTENING_SECONDS,
            *encode_record(job),
        )
        if verdict == "output":
            raise OutputInUse(_not_retried(job, job_id) if job.retry_of else output_in_use(job.output, job_id, more[0]))
        if verdict != "ok":
            return Recorded(job_id, is_new=False)
        return Recorded(job_id, is_new=True, at=float(more[0]), is_heard=more[1] == 1)

    def get(self, job_id: str) -> JobRecord:
        """The job with this id, or the one that the id is an alias of. Raises JobNotFound, RecordUnreadable."""
        fields = self._redis.call("hgetall", self._redis.job_key(job_id))
        if not fields and (first := self._redis.call("get", f"{self._redis.prefix}alias:{job_id}")):
            fields = self._redis.call("hgetall", self._redis.job_key(first))
        if not fields:
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        return decode(JobRecord, fields)

    def account_of(self, job_id: str) -> str | None:
        """The name of the account a job uses, or None for an unknown job."""
        return cast("str | None", self._redis.call("hget", self._redis.job_key(job_id), "account"))

    def remembered_account_of(self, job_id: str) -> str | None:
        """The same; of a job that this process has met lately it is not asked again. A claim tells whether it holds."""
        if (account := self._accounts.get(job_id)) is None and (account := self.account_of(job_id)) is not None:
            self.remember_account(job_id, account)
        return account

    def remember_account(self, job_id: str, account: str) -> None:
        if len(self._accounts) >= REMEMBERED:
            self._accounts.clear()
        self._accounts[job_id] = account

    def id_of_key(self, key: str) -> str | None:
        """The id of the job that was submitted under this idempotency key, if it is still known."""
        job_id = self._redis.call("get", f"{self._redis.prefix}key:{key}")
        return job_id if job_id and self._redis.call("exists", self._redis.job_key(job_id)) else None

    def closed(self, job_ids: Sequence[str]) -> dict[str, bool]:
        """For those of these jobs that are known here, whether they are closed."""
        found = self._redis.hashes([self._redis.job_key(job_id) for job_id in job_ids], ("id", "closed"))
        pairs = zip(job_ids, found, strict=True)
        return {job_id: fields.get("closed") == "1" for job_id, fields in pairs if fields and isinstance(fields, dict)}

    def newest(self, *, state: State | None = None, limit: int = 100) -> list[JobRecord]:
        """Newest first. ``cancelling`` lists the jobs that are being cancelled.

        An unreadable record is shown as a job with the error ``record_unreadable``.
        """
        index = f"{self._redis.prefix}jobs:{state.value}" if state is not None else f"{self._redis.prefix}jobs"
        found: list[JobRecord] = []
        expired: list[str] = []
        start, size = 0, max(min(limit, LISTED_AT_ONCE), 1)
        while start < 1_000_000:
            ids = self._redis.call("zrevrange", index, start, start + size - 1)
            for job_id, fields in zip(
                ids, self._redis.hashes([self._redis.job_key(job_id) for job_id in ids]), strict=True
            ):
                job = _shown(job_id, fields, state)
                if job is None:
                    expired.append(job_id)
                elif state in (None, job.state):
                    found.append(job)
            if len(found) >= limit or len(ids) < size:
                break
            start, size = start + size, LISTED_AT_ONCE
        if expired:  # only now: removing them while paging by rank would skip others
            with suppress(StoreUnavailable):  # a list can be read from a replica, too
                self._redis.call("zrem", index, *expired)
                if state is None:
                    self._redis.call("zrem", f"{self._redis.prefix}job_ids", *expired)
        return found[:limit]

    def beginning_with(self, begin: str, *, most: int) -> list[JobRecord]:
        """Jobs with ids that begin so, in the order of their ids, with ``id`` and ``name`` alone; at most so many."""
        index, found, start = f"{self._redis.prefix}job_ids", list[JobRecord](), 0
        while start < LISTED_AT_ONCE:  # beyond are expired ones that no sweep has removed yet
            # an id has small letters and digits only, which all come before {
            ids = self._redis.call("zrangebylex", index, f"[{begin}", f"({begin}{{", start, most)
            known = self._redis.hashes([self._redis.job_key(job_id) for job_id in ids], ("id", "name"))
            found += [JobRecord(**fields) for fields in known if isinstance(fields, dict) and fields.get("id")]
            start += most
            if len(found) >= most or len(ids) < most:
                break
        return found[:most]

    def open_of(self, account: str) -> Iterator[dict[str, int]]:
        """Ids of an account's jobs that may have shards to do, each with their number, a page at a time.

        A job that changes its state in between may come twice, but none is skipped.
        """
        index, cursor = f"{self._redis.prefix}jobs:{State.RUNNING.value}", 0
        while True:
            cursor, found = self._redis.call("zscan", index, cursor, count=LISTED_AT_ONCE)
            ids = [job_id for job_id, _ in found]
            hashes = self._redis.hashes([self._redis.job_key(job_id) for job_id in ids], ("account", "shards"))
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

    def prune_lists(self, *, most: int = LISTED_AT_ONCE) -> int:
        """Remove jobs with expired records from each list, checking the next ``most`` of those that are old enough.

        Returns how many were removed. Each call goes on where the last one ended, and starts over at the end.
        """
        before, marks = self._redis.now() - self._redis.ttl_seconds, f"{self._redis.prefix}pruned"
        names = ["jobs", *(f"jobs:{state.value}" for state in State)]
        at = {name: int(mark) for name, mark in self._redis.call("hgetall", marks).items() if mark.isdigit()}
        pipe = self._redis.pipeline()
        for name in names:
            pipe.zrangebyscore(self._redis.prefix + name, "-inf", f"{before:.6f}", start=at.get(name, 0), num=most)
        listed = dict(zip(names, self._redis.execute(pipe), strict=True))
        jobs = sorted({job_id for ids in listed.values() for job_id in ids})
        for job_id in jobs:
            pipe.exists(self._redis.job_key(job_id))
        there = dict(zip(jobs, self._redis.execute(pipe), strict=True)) if jobs else {}
        gone = 0
        for name, ids in listed.items():
            expired = [job_id for job_id in ids if not there[job_id]]
            if expired:
                pipe.zrem(self._redis.prefix + name, *expired)
                if name == "jobs":
                    pipe.zrem(f"{self._redis.prefix}job_ids", *expired)
            on = at.get(name, 0) + len(ids) - len(expired) if len(ids) == most else 0
            if on != at.get(name, 0):
                pipe.hset(marks, name, str(on))
            gone += len(expired)
        if len(pipe):
            self._redis.execute(pipe)
        return gone

    def cancel(self, job_id: str, *, published: int | None = None) -> tuple[bool, int]:
        """Set the cancel flag. Returns (False if the job had ended, number of its shards). Raises JobNotFound.

        ``published``: how many shards the caller publishes again; the sweep does the others. None: the caller does all.
        """
        args = (self._redis.prefix, job_id, _published(published))
        answer = self._redis.run("cancel", self._redis.keys(job_id, JOB), *args)
        if answer[0] == "gone":
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        return answer[0] == "ok", int(answer[1])

    def resolve_hold(
        self, job_id: str, decision: Literal["resend", "land"], *, published: int | None = None
    ) -> tuple[str, int]:
        """End a job's hold. Returns ok, none (it is not held) or ended, and the number of its shards.

        ``published``: as for ``cancel``. Raises JobNotFound.
        """
        args = (decision, self._redis.prefix, job_id, _published(published))
        answer = self._redis.run("resolve_hold", self._redis.keys(job_id, JOB), *args)
        if answer[0] == "gone":
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        return answer[0], int(answer[1])

    def set_results(self, job_id: str, results: str, real: str) -> None:
        """Note where the result files of a closed job lie now (``real``: the same without links). Does nothing if the
        job is not known here.
        """
        self._redis.run("set_results", self._redis.keys(job_id, JOB), results, real)

    def note_retried(self, job_id: str, counts: Mapping[str, int]) -> None:
        """Note how many rows of a job are ok, failed and missing together with its retries. Does nothing if the job is
        not known here.
        """
        self._redis.run("note_retried", self._redis.keys(job_id, JOB), orjson.dumps(dict(counts)).decode())

    def land(self, job_id: str, indexes: Iterable[int], *, in_output: bool = True) -> str:
        """Reopen an ended job to collect these shards, which are due at once; it is running then.

        They are marked first, which changes nothing, then one script makes it running, and `make_due` takes them up.
        ``in_output``: its results go to its output; else they lie elsewhere, and the output may be another job's.
        Returns ok, or why not: running, not_closed, none, output (another job, not closed, writes there).
        Raises JobNotFound.
        """
        keys, verdict = self._redis.keys(job_id, JOB), "ok"
        for chunk in chunks(indexes, CHUNK):
            verdict = str(self._redis.run("mark_for_landing", keys, self._redis.prefix, job_id, *chunk)[0])
            if verdict != "ok":
                break
        else:
            args = (self._redis.prefix, job_id, uuid.uuid4().hex, self._redis.lease_seconds, int(in_output))
            verdict = str(self._redis.run("land", keys, *args)[0])
        if verdict == "gone":
            raise JobNotFound(f"no job {job_id} is known here", job=job_id)
        self._due.make_due(job_id)
        return verdict

    def restore(self, job: JobRecord, shards: Iterable[ShardRecord]) -> tuple[str, str]:
        """Write the records of a running job that Redis has lost; its unfinished shards are due at once.

        Returns ``ok``, ``known`` (nothing was written), or ``output`` and the job, not closed, that owns the output.
        """
        token = uuid.uuid4().hex
        for chunk in chunks(shards, CHUNK):
            args = (self._redis.prefix, job.id, token, self._redis.ttl_seconds, *map(draft, chunk))
            if self._redis.run("restore_shards", self._redis.keys(job.id, JOB), *args)[0] == "known":
                return "known", ""
        key = f"{self._redis.prefix}key:{job.key}" if job.key else self._redis.job_key(job.id)
        owns = orjson.dumps(job.owns).decode()
        answer = self._redis.run(
            "restore",
            [*self._redis.keys(job.id, JOB), key],
            self._redis.prefix,
            job.id,
            token,
            owns,
            *encode_record(job),
        )
        if answer[0] == "ok":
            self._due.make_due(job.id)
        return answer[0], answer[1] if len(answer) > 1 else ""


def _published(count: int | None) -> int:
    return count if count is not None else 1_000_000_000


def _not_retried(job: JobRecord, other: str) -> str:
    return (
        f"job {job.retry_of} cannot be retried while job {other} has not ended, which sends rows of the same job, or "
        f"writes to the same output: follow it (batchpipe wait {other})"
    )


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


def _shown(job_id: str, found: Any, state: State | None) -> JobRecord | None:
    try:
        return decoded(JobRecord, found, job_id)
    except RecordUnreadable as error:
        stored = state or State.PENDING
        if isinstance(found, Mapping) and found.get("stage") in [one.value for one in State]:
            stored = State(found["stage"])
        cancelling = stored is State.CANCELLING
        problem = Problem(code=error.code, message=log_once(error))
        stage = State.RUNNING if cancelling else stored
        return JobRecord(id=job_id, stage=stage.value, cancel=cancelling, error=problem)
