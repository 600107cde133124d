"""The JSON that users and other programs see: ``status --json``, ``job.json``, ``Job.to_dict()``. A contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from batchpipe.jobs import MAX_TELLS, JobRecord, Problem, ShardRecord, Stage
from batchpipe.masking import without_secrets
from batchpipe.rows import add_usage

#: Where a job's files lie below its output.
OUTPUT_FILE, ERROR_FILE, JOB_FILE = "output.jsonl", "errors.jsonl", "job.json"
#: Where results of an earlier job go when another one begins to write to the same output: beside its workspace.
EARLIER = ".batchpipe"


def job_view(job: JobRecord, shards: Iterable[ShardRecord] | None = None) -> dict[str, Any]:
    """A job as a JSON object; times are unix seconds or null; with ``shards`` if they are given."""
    parts = list(shards) if shards is not None else None
    view: dict[str, Any] = {
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
        "rows": _rows(job, parts),
        "incomplete": _incomplete(job, parts),
    }
    if parts is not None:
        view["shards"] = [shard_view(shard) for shard in parts]
    return view


def telling(job: JobRecord) -> str | None:
    """For people: that a site's receivers have not heard of the job's end. None where they have, or are about to."""
    if not job.state.ended or not job.untold:
        return None
    if job.untold > MAX_TELLS:
        return f"receivers were never told: given up after {job.untold} tries; see its log"
    if job.notified:
        return None
    tries = "1 try" if job.untold == 1 else f"{job.untold} tries"
    return f"receivers not told yet: {tries}, last: {job.trouble.message if job.trouble else 'not known'}"


def ended_early(incomplete: Mapping[str, int]) -> str:
    """For people: how many answers were cut, and why; empty if none was."""
    if not incomplete:
        return ""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(incomplete.items()))
    return f"{sum(incomplete.values()):,} ok rows are incomplete: {reasons}"


def shard_view(shard: ShardRecord) -> dict[str, Any]:
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
    }


def metrics_view(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    now: float,
    events: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Rows, tokens, cost, and seconds in each stage (the longest shard's; a stage that is under way up to now).

    ``events`` of the job's log tell of its waits; the same trouble again and again is one of them.

    The cost is of what is collected; null if that of one shard is not known.
    """
    parts = list(shards)
    marks = ("planned_at", "uploaded_at", "created_at", "ended_at", "collected_at")
    seconds: dict[str, float] = {}
    for shard in parts:
        times = [getattr(shard, mark) for mark in marks]
        for name, start, end in zip(("upload", "create", "wait", "download"), times, times[1:], strict=False):
            if start is not None:
                ended = end if end is not None else (now if shard.stage != Stage.COLLECTED else start)
                seconds[name] = max(seconds.get(name, 0.0), round(ended - start, 3))
    tokens: dict[str, int] = {}
    for shard in parts:
        for name, count in shard.usage.items():
            tokens[name] = tokens.get(name, 0) + count
    costs = [shard.cost for shard in parts if shard.stage == Stage.COLLECTED]
    return {
        "rows": _rows(job, parts),
        "tokens": tokens,
        "cost_usd": round(sum(known) / 10**12, 6)
        if len(known := [c for c in costs if c is not None]) == len(costs)
        else None,
        "shards": len(parts),
        "stages": dict(Counter(shard.stage for shard in parts)),
        "rounds": job.round,
        "uploads": sum(shard.uploads for shard in parts),
        "batches": sum(len(shard.spent) + (shard.batch_id is not None) for shard in parts),
        "rows_resent": sum(shard.rows for shard in parts if shard.round > 1),
        "waits": dict(Counter(event.get("reason", "failure") for event in events if event["event"] == "put_off")),
        "seconds": {
            "prepare": _span(job.created_at, parts[0].planned_at if parts else job.ended_at, now),
            **seconds,
            "merge": _span(job.finalizing_at, job.ended_at, now),
            "total": _span(job.created_at, job.ended_at, now),
        },
    }


def _span(start: float | None, end: float | None, now: float) -> float | None:
    if start is None:
        return None
    return round(max(0.0, (now if end is None else end) - start), 3)


def _rows(job: JobRecord, shards: list[ShardRecord] | None) -> dict[str, int | None]:
    """The job's own numbers; while it runs, what its collected shards have brought so far, if all have."""
    if job.ok is not None or not shards or job.round > 1 or any(shard.ok is None for shard in shards):
        return {"total": job.total, "ok": job.ok, "failed": job.failed, "missing": job.missing}
    sums = {name: sum(getattr(shard, name) or 0 for shard in shards) for name in ("ok", "failed", "missing")}
    return {"total": job.total, **sums}


def _incomplete(job: JobRecord, shards: list[ShardRecord] | None) -> dict[str, int]:
    """Rows that are ok and ended early, by reason; of a job that runs, those that its shards have brought so far."""
    if job.ok is not None or not shards:
        return job.incomplete
    sums: dict[str, int] = {}
    for shard in shards:
        add_usage(sums, shard.incomplete)
    return sums


def _problem(problem: Problem | None) -> dict[str, str] | None:
    return {"code": problem.code, "message": problem.message} if problem is not None else None


def _result_file(job: JobRecord, name: str) -> str | None:
    """Where the result lies; null until the merge has written it, and for a job that sent nothing."""
    if not job.state.ended or not job.results:
        return None
    return f"{job.results.rstrip('/')}/{name}"
