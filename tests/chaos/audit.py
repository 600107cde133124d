"""What must be true when all is over, whatever was killed in between: five zeros."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from batchpipe.client.job import Job as Handle
from batchpipe.errors import BatchpipeError, JobNotFound
from batchpipe.model.records import JobRecord, ShardRecord
from batchpipe.sandbox.batches import Batch
from batchpipe.sandbox.rows import local_answer
from tests.chaos.servers import Job, Lane

#: A batch that is being cancelled has this long to be cancelled; one that a job still needs has ended by then.
SETTLE_SECONDS = 8.0


@dataclass
class Audit:
    """Each list must be empty; what is in it says what was found."""

    lost_jobs: list[str] = field(default_factory=list)
    lost_rows: list[str] = field(default_factory=list)
    billed_twice: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    wrong_results: list[str] = field(default_factory=list)
    jobs: int = 0
    rows: int = 0
    ok: int = 0
    batches: int = 0
    losers: int = 0  #: batches made beside the recorded one, and cancelled before a row of them ran
    refused: int = 0  #: jobs that were refused because what lies in their output is another's
    given_up: int = 0  #: paid rows that are missing for a reason that is said: their workspace was deleted

    @property
    def zeros(self) -> dict[str, list[str]]:
        return {
            "lost jobs": self.lost_jobs,
            "lost rows": self.lost_rows,
            "rows billed twice": self.billed_twice,
            "orphans": self.orphans,
            "wrong results": self.wrong_results,
        }

    @property
    def good(self) -> bool:
        return not any(self.zeros.values())

    def add(self, other: Audit) -> None:
        for name, found in other.zeros.items():
            self.zeros[name].extend(found)
        for name in ("jobs", "rows", "ok", "batches", "losers", "refused", "given_up"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __str__(self) -> str:
        return "\n".join(f"{name}: {line}" for name, found in self.zeros.items() for line in found) or "all zeros"


def judge(lane: Lane, jobs: Sequence[Job], *, rounds: bool = True, check_files: bool = True) -> Audit:
    """Look at all jobs of a lane after their end. ``rounds``: rows that failed for a while must have come through.
    ``check_files``: uploads that no batch used must be deleted, too.
    """
    verdict = Audit(jobs=len(jobs))
    _wait_for_the_provider(lane)
    billed: dict[str, dict[str, int]] = defaultdict(dict)
    for (owner, row), times in lane.sandbox.ledger.billed_by_job.items():
        billed[owner][row] = times
    recorded: Counter[str] = Counter()
    keys: dict[str, str] = {}
    for job in jobs:
        _judge_foreign(verdict, job)
        if not job.id and lane.output_is_refused(job):
            verdict.refused += 1
            continue
        try:
            record = lane.store.jobs.get(job.id)
        except JobNotFound:
            verdict.lost_jobs.append(f"{job.id}: no record")
            continue
        shards = list(lane.store.shards.of_job(record))
        _judge_end(verdict, job, record, shards)
        for shard in shards:
            for batch_id in filter(None, (shard.batch_id, *shard.spent)):
                recorded[batch_id] += 1
                keys[batch_id] = f"{job.id}/{shard.index}"
        if record.state.ended:
            _judge_rows(verdict, lane, job, record, billed[job.id], rounds=rounds)
    ledger = lane.sandbox.ledger
    verdict.billed_twice += [str(row) for row in (*ledger.billed_twice(), *ledger.asked_again())]
    _judge_batches(verdict, lane, recorded)
    if check_files:
        _judge_files(verdict, lane)
    return verdict


def _wait_for_the_provider(lane: Lane) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and not all(batch.is_final for batch in lane.sandbox.batches.all()):
        time.sleep(0.05)


def _judge_foreign(verdict: Audit, job: Job) -> None:
    if job.foreign is None or job.gone:
        return
    if not job.foreign.exists() or job.key not in job.foreign.read_text():
        verdict.wrong_results.append(f"{job.id or job.key}: {job.foreign} was a stranger's, and is not what it was")


def _judge_end(verdict: Audit, job: Job, record: JobRecord, shards: list[ShardRecord]) -> None:
    if record.closed and job.heard is not None and not (job.heard / job.id).exists():
        verdict.lost_jobs.append(f"{record.id}: {record.stage}, but its receivers have not heard")
    if not record.state.ended or not record.closed:
        open_shards = [
            f"{shard.index}:{shard.stage} epoch {shard.epoch} next_at {shard.next_at:.1f} {shard.trouble or ''}"
            for shard in shards
            if shard.stage != "collected"
        ]
        trouble = f"trouble {record.trouble}, shards {open_shards}"
        verdict.lost_jobs.append(
            f"{record.id}: {record.stage}, closed {record.closed}, epoch {record.epoch}, {trouble}"
        )


def _judge_rows(
    verdict: Audit, lane: Lane, job: Job, record: JobRecord, billed: dict[str, int], *, rounds: bool
) -> None:
    if _is_refused(job, record) and not billed:
        verdict.refused += 1
        return
    if job.gone:
        _judge_what_is_left(verdict, job, record, billed)
        return
    try:
        ok, other = _results(lane, record)
    except (BatchpipeError, OSError) as error:
        verdict.lost_rows.append(f"{job.id}: its results cannot be read: {error!r}")
        return
    verdict.rows += len(job.rows)
    verdict.ok += len(ok)
    ids = [row["custom_id"] for row in job.rows]
    if job.cancelled and record.shards == 0:
        if billed or ok or other:
            verdict.wrong_results.append(f"{job.id}: cancelled before it was planned, but rows were run")
        return
    found = Counter(line["custom_id"] for line in (*ok, *other))
    for row in ids:
        if found[row] != 1:
            verdict.lost_rows.append(f"{job.id}: {row} has {found[row]} outcomes")
    if unknown := set(found) - set(ids):
        verdict.lost_rows.append(f"{job.id}: rows that nobody asked for: {sorted(unknown)}")
    counts = (record.total, record.ok, (record.failed or 0) + (record.missing or 0))
    if counts != (len(ids), len(ok), len(other)):
        verdict.lost_rows.append(f"{job.id}: counted {counts}, files have {len(ok)} and {len(other)} of {len(ids)}")
    _judge_results(verdict, job, ok, other, billed, rounds=rounds)


def _is_refused(job: Job, record: JobRecord) -> bool:
    """Its output was another's, or a stranger's, when it was prepared."""
    code = record.error.code if record.error else ""
    return (code == "output_in_use" and job.shares is not None) or (code == "output_foreign" and bool(job.foreign))


def _judge_what_is_left(verdict: Audit, job: Job, record: JobRecord, billed: dict[str, int]) -> None:
    """Its workspace was deleted: its rows are counted all the same, and what was paid for is there, or it is said
    why not. Files may be gone with the folder.
    """
    verdict.rows += len(job.rows)
    counts = (record.ok or 0, record.failed or 0, record.missing or 0)
    if record.total not in (None, 0) and sum(counts) != len(job.rows):
        verdict.lost_rows.append(f"{job.id}: counted {counts} of {len(job.rows)}")
    if record.total in (None, 0) and billed:
        verdict.lost_rows.append(f"{job.id}: {record.error}: no row is counted, but {sorted(billed)} were paid")
    verdict.ok += counts[0]
    paid = len(billed) - counts[0]
    if paid > 0:
        verdict.given_up += paid
        if record.error is None:
            verdict.wrong_results.append(f"{job.id}: {paid} rows were paid for and are not ok, and nothing says why")


def _results(lane: Lane, record: JobRecord) -> tuple[list[Any], list[Any]]:
    """The lines of a job's two files, from where the handle says that they are; they must be what it iterates over."""
    settings = SimpleNamespace(roots=lambda: (), is_sandbox=lambda account: True)  # places anywhere
    handle = Handle(record, cast(Any, SimpleNamespace(store=lane.store, settings=settings)))
    result = handle.result()
    ok, other = (_read(Path(place)) if place else [] for place in (result.output_file, result.error_file))
    told = Counter("ok" if outcome.state == "ok" else "other" for outcome in handle.results())
    if (told["ok"], told["other"]) != (len(ok), len(other)):
        raise BatchpipeError(f"results() has {dict(told)}, the files have {len(ok)} and {len(other)}")
    return ok, other


def _judge_results(
    verdict: Audit, job: Job, ok: list[Any], other: list[Any], billed: dict[str, int], *, rounds: bool
) -> None:
    """The same as without faults: what the provider answers depends on the request alone."""
    ids = [row["custom_id"] for row in job.rows]
    for lines in (ok, other):
        order = [ids.index(line["custom_id"]) for line in lines if line["custom_id"] in ids]
        if order != sorted(order):
            verdict.wrong_results.append(f"{job.id}: not in input order")
    requests = {row["custom_id"]: row for row in job.rows}
    for line in ok:
        request = requests.get(line["custom_id"])
        if request and line["response"]["body"] != local_answer(request["url"], request["body"])[1]:
            verdict.wrong_results.append(f"{job.id}: {line['custom_id']} has another answer")
    paid, fine = set(billed), {line["custom_id"] for line in ok}
    if paid != fine:
        lost, free = sorted(paid - fine), sorted(fine - paid)
        verdict.wrong_results.append(f"{job.id}: paid but not ok {lost}, ok but not paid {free}")
    for line in other:
        verdict.wrong_results += [f"{job.id}: {text}" for text in _why_not_ok(job, line, rounds=rounds)]


def _why_not_ok(job: Job, line: dict[str, Any], *, rounds: bool) -> list[str]:
    row, response = line["custom_id"], line.get("response") or {}
    if row in job.refused:
        answered = response.get("status_code") == 400 or job.cancelled or job.refused_whole or not rounds
        return [] if answered else [f"{row} was refused with 400, but has {line}"]
    if job.landed and (line.get("error") or {}).get("code") == "batch_expired":
        return []  # it had not run, which only the landed file said
    if rounds and not job.cancelled and not job.refused_whole:
        return [f"{row} should have come through: {line}"]
    return []


def _judge_batches(verdict: Audit, lane: Lane, recorded: Counter[str]) -> None:
    kept: Counter[str] = Counter()
    for batch in lane.sandbox.batches.all():
        verdict.batches += 1
        if not batch.is_final:
            verdict.orphans.append(f"{_name(batch)} still runs")
        if recorded[batch.id]:
            kept[(batch.metadata or {}).get("batchpipe_key", "")] += 1
            continue
        ran = [row.custom_id for row in lane.sandbox.ledger.rows(batch.id) if row.billed]
        if ran or batch.status not in ("cancelled", "failed"):
            verdict.orphans.append(f"{_name(batch)} is recorded nowhere; billed {ran}")
        else:
            verdict.losers += 1
    verdict.orphans += [f"key {key}: {count} batches are recorded" for key, count in kept.items() if count > 1]


def _name(batch: Batch) -> str:
    return f"{batch.id} ({batch.status}, {(batch.metadata or {}).get('batchpipe_key')})"


def _judge_files(verdict: Audit, lane: Lane) -> None:
    used = {batch.input_file_id for batch in lane.sandbox.batches.all()}
    for file in lane.sandbox.files.all():
        # a key that does not see a file cannot delete it: docs/guarantees.md
        if file.purpose == "batch" and file.id not in used | lane.sandbox.files.hidden:
            verdict.orphans.append(f"file {file.id} ({file.filename}) was used by no batch")


def _read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
