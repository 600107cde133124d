"""The JSON that users and other programs see: ``status --json``, ``job.json``, ``Job.to_dict()``. A contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from batchpipe.masking import without_secrets
from batchpipe.model.admission import Waiting
from batchpipe.model.answers import add_usage
from batchpipe.model.eta import FORESEEN
from batchpipe.model.progress import answered_of, progress_of_job, progress_view
from batchpipe.model.reasons import reasons_view
from batchpipe.model.records import MAX_NOTIFY_ATTEMPTS, JobRecord, Problem, ShardRecord, Stage
from batchpipe.model.stats import Pause
from batchpipe.model.waits import job_waits_for, shard_waits_for

#: Where a job's files lie below its output.
OUTPUT_FILE, ERROR_FILE, JOB_FILE = "output.jsonl", "errors.jsonl", "job.json"
#: Where results of an earlier job go when another one begins to write to the same output: next to its workspace.
EARLIER = ".batchpipe"


#: The fields of shards that a view of a job needs, as they are stored.
SHOWN = (
    *("round", "batch_id", "status", "rows", "counts", "ok", "failed", "missing", "invalid", "incomplete"),
    *("answered", "resend", "stalled_at", "stall", "waits_since", *FORESEEN),
)
#: Those that ``metrics_view`` needs in addition.
MEASURED = (
    *("round", "batch_id", "rows", "ok", "failed", "missing", "invalid", "usage", "cost", "uploads", "spent"),
    *("planned_at", "uploaded_at", "created_at", "ended_at", "collected_at"),
)


@dataclass(frozen=True)
class Moment:
    """What a view shows beside the records: all that was known when it was asked for."""

    now: float | None = None  #: our time; None: that of the records
    pause: Pause | None = None  #: of the job's account
    samples: Mapping[str, str] = field(default_factory=dict)  #: a message for each reason of rows that are not ok
    job_eta: Mapping[str, Any] | None = None
    shard_eta: Callable[[ShardRecord], Mapping[str, Any] | None] = lambda shard: None  #: raises StoreUnavailable
    room: tuple[int, Waiting] | None = None  #: how many shards of the job wait for room, and how the first of them does
    shard_room: Callable[[ShardRecord], Waiting | None] = lambda shard: None  #: how one that waits for room does
    troubled: ShardRecord | None = None  #: a shard in trouble, where not all shards are looked at for the view


#: A moment of which nothing is known but the records.
UNKNOWN = Moment()


class Sums:
    """The results of a job's shards so far, added up one by one: there may be 100,000."""

    def __init__(self) -> None:
        self.count = 0
        self.answered = 0
        self.troubled: ShardRecord | None = None  #: the first that is in trouble
        self._rows = {"ok": 0, "failed": 0, "missing": 0}
        self._invalid = 0
        self._all_known = True
        self._incomplete: dict[str, int] = {}

    def add(self, shard: ShardRecord) -> None:
        self.count += 1
        self.answered += answered_of(shard)
        self._all_known = self._all_known and shard.ok is not None
        for name in self._rows:
            self._rows[name] += getattr(shard, name) or 0
        self._invalid += shard.invalid or 0
        add_usage(self._incomplete, shard.incomplete)
        if self.troubled is None and shard.trouble is not None and shard.stage != Stage.COLLECTED:
            self.troubled = shard

    def rows(self, job: JobRecord) -> dict[str, int | None]:
        """The job's own numbers; while it runs, the sums over its shards, if all of them have numbers."""
        if job.ok is not None or not self.count or job.round > 1 or not self._all_known:
            found = {"total": job.total, "ok": job.ok, "failed": job.failed, "missing": job.missing}
            return {**found, "invalid": job.invalid} if job.recipe else found
        return {"total": job.total, **self._rows, **({"invalid": self._invalid} if job.recipe else {})}

    def answered_in(self, job: JobRecord) -> int | None:
        """Answered rows; None if the job's own number is to be shown."""
        return self.answered if self.count and job.ok is None else None

    def incomplete(self, job: JobRecord) -> dict[str, int]:
        """Rows that are ok and ended early, by reason; for a running job, those of its shards so far."""
        return job.incomplete if job.ok is not None or not self.count else self._incomplete


def job_view(job: JobRecord, shards: Iterable[ShardRecord] | None = None, moment: Moment = UNKNOWN) -> dict[str, Any]:
    """A job as a JSON object; times are unix seconds or null; with ``shards`` if they are given."""
    sums, parts = Sums(), list[dict[str, Any]]()
    for shard in shards or ():
        sums.add(shard)
        parts.append(shard_view(shard, moment))
    view = _head(job, sums, moment)
    if shards is not None:
        view["shards"] = parts
    return view


def page_view(job: JobRecord, first: int, shards: Iterable[ShardRecord], moment: Moment = UNKNOWN) -> dict[str, Any]:
    """A job as a JSON object with some of its shards, from an index on: ``shards_in_all``, and ``next``, the index to
    continue from, or null.

    Row counts that are sums over all shards are included if these are all of them; else only the job's own, at its end.
    """
    parts = list(shards)
    whole = first == 0 and len(parts) >= job.shards
    view = job_view(job, parts if whole else None, moment)
    if not whole:
        view["shards"] = [shard_view(shard, moment) for shard in parts]
    on = parts[-1].index + 1 if parts else job.shards
    return {**view, "shards_in_all": job.shards, "next": on if on < job.shards else None}


def json_of_job(job: JobRecord, read: Callable[[], Iterable[ShardRecord]], moment: Moment = UNKNOWN) -> Iterator[bytes]:
    """The same with all shards as JSON text, a part at a time: memory does not grow with their number.

    ``read`` reads the shards; for a running job it is called twice.
    """
    sums = Sums()
    for shard in read() if job.ok is None else ():
        sums.add(shard)
    head = orjson.dumps(_head(job, sums, moment), option=orjson.OPT_INDENT_2)
    yield head.removesuffix(b"\n}") + b',\n  "shards": ['
    between = b"\n"
    for shard in read():
        part = orjson.dumps(shard_view(shard, moment), option=orjson.OPT_INDENT_2)
        yield between + b"    " + part.replace(b"\n", b"\n    ")
        between = b",\n"
    yield (b"\n  ]" if between == b",\n" else b"]") + b"\n}\n"


def _head(job: JobRecord, sums: Sums, moment: Moment) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "account": job.account,
        "endpoint": job.endpoint,
        "input": without_secrets(job.input),
        "output": without_secrets(job.output),
        "output_file": _result_file(job, OUTPUT_FILE),
        "error_file": _result_file(job, ERROR_FILE),
        "created_at": job.created_at or None,
        "ended_at": job.ended_at,
        "error": _problem(job.error),
        "held": _problem(job.hold),
        "tags": job.tags,
        "rows": sums.rows(job),
        **({"retry_of": job.retry_of} if job.retry_of else {}),
        **({"retries": job.retries, "rows_with_retries": job.retried or None} if job.retries else {}),
        "incomplete": sums.incomplete(job),
        "progress": progress_view(progress_of_job(job, now=moment.now, answered=sums.answered_in(job))),
        "eta": moment.job_eta,
        "waits_for": job_waits_for(job, moment.pause, moment.room, sums.troubled or moment.troubled),
        "reasons": reasons_view(job.reasons, moment.samples),
    }


def summary_view(job: JobRecord, sums: Sums, moment: Moment = UNKNOWN) -> dict[str, Any]:
    """A job as a JSON object without its shards, with ``sums`` over these."""
    return _head(job, sums, moment)


def not_notified(job: JobRecord) -> str | None:
    """For people: that a site's receivers were not notified of the job's end. None if they were, or are about to be."""
    if not job.state.ended or not job.notify_attempts:
        return None
    if job.notify_attempts > MAX_NOTIFY_ATTEMPTS:
        return f"receivers were never notified: stopped after {job.notify_attempts} tries; see its log"
    if job.notified:
        return None
    tries = "1 try" if job.notify_attempts == 1 else f"{job.notify_attempts} tries"
    return f"receivers not notified yet: {tries}, last: {job.trouble.message if job.trouble else 'not known'}"


def ended_early(incomplete: Mapping[str, int]) -> str:
    """For people: how many answers were cut, and why; empty if none was."""
    if not incomplete:
        return ""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(incomplete.items()))
    return f"{sum(incomplete.values()):,} ok rows are incomplete: {reasons}"


def shard_view(shard: ShardRecord, moment: Moment = UNKNOWN) -> dict[str, Any]:
    return {
        "index": shard.index,
        "round": shard.round,
        "stage": shard.stage,
        "batch_id": shard.batch_id,
        "status": shard.status,
        "rows": shard.rows,
        "request_counts": {
            "total": shard.counts.total,
            "completed": shard.counts.completed,
            "failed": shard.counts.failed,
        },
        "expires_at": shard.expires_at if shard.batch_id is not None else None,
        "eta": moment.shard_eta(shard),
        "late": late_view(shard),
        "waits_for": shard_waits_for(shard, moment.shard_room(shard)),
    }


def late_view(shard: ShardRecord) -> dict[str, Any] | None:
    """Since when, and how, its batch is late: it runs far longer than those of its model usually do."""
    if shard.stall is None or shard.stage != Stage.CREATED or shard.over_at is not None:
        return None
    return {"since": shard.stalled_at, "message": shard.stall.message}


def metrics_view(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    now: float,
    events: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Rows, tokens, cost, and seconds in each stage (the longest shard's; a stage that is under way up to now).

    ``events`` of the job's log show its waits; repeated trouble of the same kind counts as one.

    The cost covers what is collected; null if the cost of one shard is not known.
    """
    seen = _Measures(now)
    for shard in shards:
        seen.add(shard)
    return {
        "rows": seen.sums.rows(job),
        "tokens": seen.tokens,
        "cost_usd": round(seen.cost / 10**12, 6) if seen.cost is not None else None,
        "shards": seen.sums.count,
        "stages": dict(seen.stages),
        "rounds": job.round,
        "uploads": seen.uploads,
        "batches": seen.batches,
        "rows_resent": seen.rows_resent,
        "waits": dict(Counter(event.get("reason", "failure") for event in events if event["event"] == "deferred")),
        "seconds": {
            "prepare": _span(job.created_at, seen.planned_at if seen.sums.count else job.ended_at, now),
            **seen.seconds,
            "merge": _span(job.finalizing_at, job.ended_at, now),
            "total": _span(job.created_at, job.ended_at, now),
        },
    }


class _Measures:
    """Shards measured one by one."""

    def __init__(self, now: float) -> None:
        self._now = now
        self.sums = Sums()
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.cost: int | None = 0
        self.stages: Counter[str] = Counter()
        self.uploads = self.batches = self.rows_resent = 0
        self.planned_at: float | None = None

    def add(self, shard: ShardRecord) -> None:
        if not self.sums.count:
            self.planned_at = shard.planned_at
        self.sums.add(shard)
        self.stages[shard.stage] += 1
        self.uploads += shard.uploads
        self.batches += len(shard.spent) + (shard.batch_id is not None)
        self.rows_resent += shard.rows if shard.round > 1 else 0
        for name, count in shard.usage.items():
            self.tokens[name] = self.tokens.get(name, 0) + count
        if shard.stage == Stage.COLLECTED:
            self.cost = self.cost + shard.cost if self.cost is not None and shard.cost is not None else None
        self._time(shard)

    def _time(self, shard: ShardRecord) -> None:
        marks = ("planned_at", "uploaded_at", "created_at", "ended_at", "collected_at")
        times = [getattr(shard, mark) for mark in marks]
        for name, start, end in zip(("upload", "create", "wait", "download"), times, times[1:], strict=False):
            if start is not None:
                ended = end if end is not None else (self._now if shard.stage != Stage.COLLECTED else start)
                self.seconds[name] = max(self.seconds.get(name, 0.0), round(ended - start, 3))


def _span(start: float | None, end: float | None, now: float) -> float | None:
    if start is None:
        return None
    return round(max(0.0, (now if end is None else end) - start), 3)


def _problem(problem: Problem | None) -> dict[str, str] | None:
    return {"code": problem.code, "message": problem.message} if problem is not None else None


def _result_file(job: JobRecord, name: str) -> str | None:
    """Where the result lies; null until the merge has written it, and for a job that sent nothing."""
    if not job.state.ended or not job.results:
        return None
    return f"{job.results.rstrip('/')}/{name}"
