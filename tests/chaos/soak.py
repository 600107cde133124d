"""The soak: many jobs at once, while workers are killed and frozen, Redis is killed, and the provider misbehaves."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from batchpipe.errors import JobNotFound, StoreUnavailable
from tests.chaos.audit import Audit, judge
from tests.chaos.kinds import KINDS, Kind
from tests.chaos.servers import Job, Lane, SharedServers, requests, say
from tests.forkserver import STALL_SECONDS, Child

LEASE = 3.0
#: A list may lag by less than the grace period: that is the promise, so no fault goes beyond it.
HIDDEN_SECONDS = 0.9
#: How long the jobs may take to their end when nothing is killed any more and the provider is well again. No pause of
#: ours is longer than a minute.
WELL_SECONDS = 240.0
#: How long to wait before an output that was another's, or a Redis that was away, is tried again.
SUBMIT_PAUSE = 0.3
#: What a soak consists of besides the jobs; each can be left out.
OLD_KINDS = ("provider", "kills", "freezes", "redis_kills", "cancels")
ALL_KINDS = (*OLD_KINDS, *KINDS)
#: Kinds that are only tried where they are named.
UNMENDED: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How much of everything; spread evenly at random over ``seconds``."""

    seed: int
    jobs: int = 300
    seconds: float = 300.0
    kills: int = 105
    redis_kills: int = 6
    freezes: int = 22
    workers: int = 3
    faults: float = 0.2  #: share of all API calls that fail in one of the ways below
    calm: float = 60.0  #: seconds after the last kill in which the provider still misbehaves
    slow: float = 1.0  #: how much of what costs seconds each time: full token queues, further rounds
    kinds: tuple[str, ...] = tuple(kind for kind in ALL_KINDS if kind not in UNMENDED)  #: what goes wrong


@dataclass
class Report:
    """What was done, and what came of it."""

    done: Counter[str] = field(default_factory=Counter)
    verdict: Audit = field(default_factory=Audit)
    calls: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    calm_seconds: float = 0.0  #: how long the last jobs took after the last kill
    deaths: list[str] = field(default_factory=list)  #: workers that nobody killed, and that ended all the same


def add_faults(sandbox: Any, share: float, slow: float = 1.0) -> None:
    """Everything that a provider may do. ``share`` of the calls of each route get no, a wrong or a broken answer."""
    answers: list[tuple[str, dict[str, Any]]] = [
        ("status", {"status": 500}),
        ("status", {"status": 500, "processed": True}),
        ("status", {"status": 502, "body": "<html>Bad Gateway</html>"}),
        ("status", {"status": 503, "retry_after": 0.3}),
        ("status", {"status": 429, "retry_after": 0.3, "code": "rate_limit_exceeded"}),
        ("drop_before", {}),
        ("drop_after", {}),
        ("malformed", {}),
        ("replace", {"json": {"object": "nonsense"}, "processed": True}),
    ]
    each = 1 - (1 - share) ** (1 / len(answers))
    for kind, how in answers:
        sandbox.faults.add(kind, probability=each, **how)
    others: list[tuple[str, dict[str, Any]]] = [
        ("delay", {"seconds": 0.5, "probability": share / 2}),
        ("delay_after", {"seconds": 0.5, "probability": share / 2}),
        ("truncate", {"mode": "short", "probability": share / 2}),
        ("truncate", {"mode": "clean", "probability": share / 2}),
        ("truncate", {"route": "POST /v1/*", "probability": share / 2}),
        ("no_metadata", {"route": "GET /v1/batches", "probability": share}),
        ("hide_from_list", {"seconds": HIDDEN_SECONDS, "probability": share}),
        ("unknown_status", {"seconds": 0.5, "probability": share}),
        ("expire", {"fraction": 0.5, "probability": share * slow}),
        ("token_limit", {"probability": share * slow / 2}),
        ("token_limit", {"shape": "create", "probability": share * slow / 4}),
        ("fail_batch", {"where": {"chaos": "refused"}, "code": "invalid_request", "message": "refused as a whole"}),
        ("row_fails", {"custom_id": "^bad", "status": 400, "code": "invalid_request"}),
        ("row_fails", {"fraction": share * slow, "status": 500, "row_times": 1}),
        ("row_missing", {"fraction": share * slow / 2, "row_times": 1}),
    ]
    for kind, how in others:
        sandbox.faults.add(kind, **how)


class Soak:
    """One soak in one lane. Call it once."""

    def __init__(self, shared_servers: SharedServers, plan: Plan, lane: int = 0) -> None:
        self.shared_servers, self.plan = shared_servers, plan
        self.dice = random.Random(plan.seed)
        self.lane = Lane(shared_servers, lane, validating_seconds=0.1, cancelling_seconds=0.1, seed=str(plan.seed))
        self.paying = self.lane.folder / "paying"
        self.paying.mkdir()
        self.report = Report()
        self.workers: list[Child] = []
        self.jobs: list[Job] = []
        self.open: set[str] = set()
        self.kinds: list[Kind] = [kind(self) for name, kind in KINDS.items() if name in plan.kinds]
        self._submits: dict[int, tuple[Job, Child]] = {}
        self._resubmits: list[tuple[float, Job]] = []
        self._thaws: list[tuple[float, Child]] = []
        self._cancels: list[tuple[float, Job]] = []

    def __call__(self) -> Report:
        began = time.monotonic()
        if "provider" in self.plan.kinds:
            add_faults(self.lane.sandbox, self.plan.faults, self.plan.slow)
        for kind in self.kinds:
            kind.prepare()
        self.workers = [self._new_worker(place) for place in range(self.plan.workers)]
        self.beat = self.lane.start("beat")
        self._rage(began)
        calm = time.monotonic()
        self._calm()
        self._land()
        self.report.calm_seconds = time.monotonic() - calm
        self.report.verdict = judge(self.lane, self.jobs)
        self.report.calls = len(self.lane.sandbox.calls)
        self._count_hits()
        self.report.seconds = time.monotonic() - began
        return self.report

    def _count_hits(self) -> None:
        for active in self.lane.sandbox.faults.active:
            self.report.hits[active.fault.kind] += active.hits

    def close(self) -> None:
        for worker in self.workers:
            worker.thaw()
        self.lane.close()

    # -- the soak itself ------------------------------------------------------------------------------------------

    def _rage(self, began: float) -> None:
        """Do all that is planned, each at its time."""
        for at, what in sorted(self._agenda(), key=lambda item: item[0]):
            while time.monotonic() - began < at:
                self._tend()
                time.sleep(0.02)
            what()
            self._tend()

    def _agenda(self) -> Iterator[tuple[float, Callable[[], None]]]:
        plan, dice = self.plan, self.dice
        yield from ((dice.uniform(0, plan.seconds * 0.9), self._submit) for _ in range(plan.jobs))
        deeds: list[tuple[str, int, Callable[[], None]]] = [
            ("kills", plan.kills, self._kill),
            ("kills", plan.kills // 4, self._kill_in_pool),
            ("freezes", plan.freezes, self._freeze),
            ("redis_kills", plan.redis_kills, self._kill_redis),
            ("kills", plan.redis_kills, self._kill_beat),
            *((kind.name, kind.strikes(), kind.strike) for kind in self.kinds),
        ]
        for name, times, deed in deeds:
            if name in plan.kinds:
                yield from ((dice.uniform(2, plan.seconds), deed) for _ in range(times))

    def _tend(self) -> None:
        """What follows from earlier deeds: thaws, repeated submits, cancels, workers that ended of themselves."""
        now = time.monotonic()
        for place, worker in enumerate(self.workers):
            if worker.code is not None:
                self.report.deaths.append(f"{worker.log} ended with {worker.code}")
                self._replace(place)
        for item in [item for item in self._thaws if item[0] <= now]:
            self._thaws.remove(item)
            item[1].thaw()
        for kind in self.kinds:
            kind.tend(now)
        for number, (job, child) in list(self._submits.items()):
            if child.code is not None:
                del self._submits[number]
                self._submitted(job)
        for again in [again for again in self._resubmits if again[0] <= now]:
            self._resubmits.remove(again)
            self._start_submit(again[1])
        for cancel in [cancel for cancel in self._cancels if cancel[0] <= now and cancel[1].id]:
            self._cancels.remove(cancel)
            cancel[1].cancelled = True
            self.lane.start("cancel", job=cancel[1].id)
            self.report.done["cancels"] += 1

    def _submit(self) -> None:
        number, dice = len(self.jobs), self.dice
        rows = requests(dice.randint(3, 10), name=f"r{number}-")
        refused = dice.random() < 0.1
        metadata = {"chaos": "refused"} if refused else {}
        bad = {f"bad{number}"} if dice.random() < 0.2 else set()
        rows += [request for row in bad for request in requests(1, name=row)]
        bad = {row["custom_id"] for row in rows if row["custom_id"].startswith("bad")}
        job = self.lane.new_job(rows, max_rows=dice.randint(2, 5), metadata=metadata, attempts=8)
        job.refused, job.refused_whole = bad, refused
        for kind in self.kinds:
            kind.for_job(job)
        if "cancels" in self.plan.kinds and dice.random() < 0.1:
            self._cancels.append((time.monotonic() + dice.uniform(0.0, 6.0), job))
        self.jobs.append(job)
        self._start_submit(job)

    def _start_submit(self, job: Job) -> None:
        child = self.lane.start_submit(job)
        self._submits[child.pid] = (job, child)

    def _submitted(self, job: Job) -> None:
        if self.lane.is_submitted(job):
            self.open.add(job.id)
        elif self.lane.output_is_refused(job):
            self._cancels = [cancel for cancel in self._cancels if cancel[1] is not job]
        else:
            self._resubmits.append((time.monotonic() + SUBMIT_PAUSE, job))

    def _new_worker(self, place: int) -> Child:
        pool = "prefork" if self.dice.random() < 0.25 else "threads"
        arguments: dict[str, Any] = {"pool": pool, "concurrency": 2 if pool == "prefork" else 4}
        more: dict[str, str] = {}
        for kind in self.kinds:
            arguments |= kind.for_worker(place)
            more |= kind.environment(place)
        return self.lane.start("worker", chaos={"PAYING": str(self.paying)}, more=more, **arguments)

    def _kill(self) -> None:
        """kill -9 of a worker's group, frozen or not."""
        self.restart(self.dice.randrange(len(self.workers)))
        self.report.done["worker kills"] += 1

    def restart(self, place: int) -> None:
        self.workers[place].kill()
        self._replace(place)

    def _replace(self, place: int) -> None:
        """What a supervisor does when a worker is gone."""
        gone = self.workers[place]
        self._thaws = [item for item in self._thaws if item[1] is not gone]
        self._forget_paying(gone)
        self.workers[place] = self._new_worker(place)

    def _kill_in_pool(self) -> None:
        """kill -9 of one process of a prefork pool, whose worker lives on."""
        with suppress(psutil.Error):
            children = [child for worker in self.workers for child in psutil.Process(worker.pid).children()]
            if children:
                self.dice.choice(children).kill()
                self.report.done["pool process kills"] += 1

    def _freeze(self) -> None:
        """Stop a worker's group for longer than a lease; not between its last look at the clock and its paid call."""
        if len(self._thaws) == len(self.workers):  # all are frozen: the one that has slept longest wakes
            self._thaws.pop(0)[1].thaw()
        frozen = [worker for _, worker in self._thaws]
        victim = self.dice.choice([worker for worker in self.workers if worker not in frozen])
        for _ in range(200):
            victim.freeze()
            if not self._is_paying(victim):
                break
            victim.thaw()
            self.report.done["freezes moved"] += 1
            time.sleep(0.01)
        seconds = self.dice.uniform(1.1, 2.0) * LEASE
        self._thaws.append((time.monotonic() + seconds, victim))
        self.report.done["freezes"] += 1

    def _is_paying(self, worker: Child) -> bool:
        # it is stopped: what it has noted does not change any more
        return any(note.name.startswith(f"{worker.pid}-") for note in self.paying.iterdir())

    def _forget_paying(self, worker: Child) -> None:
        for note in self.paying.glob(f"{worker.pid}-*"):
            note.unlink(missing_ok=True)

    def _kill_redis(self) -> None:
        self.shared_servers.redis.kill()
        away = time.monotonic() + self.dice.uniform(0.0, 2.0)
        while time.monotonic() < away:
            time.sleep(0.05)
        self.shared_servers.redis.start()
        self.report.done["redis kills"] += 1

    def _kill_beat(self) -> None:
        self.beat.kill()
        self.beat = self.lane.start("beat")

    # -- after the soak -------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """Thaw all, kill no more, and wait for the end of all jobs. The provider's faults stay for a while."""
        for kind in self.kinds:
            kind.calm()
        for _, worker in self._thaws:
            worker.thaw()
        self._thaws.clear()
        if self._all_end_within(self.plan.calm):
            return
        self.report.done["jobs that waited for the provider to be well"] = len(self.open)
        self._count_hits()
        self.lane.sandbox.faults.clear()
        if not self._all_end_within(WELL_SECONDS):
            say(f"{len(self.open)} jobs are open to the end")

    def _land(self) -> None:
        """Paid rows that came twice in the same unreadable bytes: a person lands them once the provider is well, and
        each must then be there.
        """
        self._count_hits()
        self.lane.sandbox.faults.clear()
        for job in self.jobs:
            if job.id and not job.gone and self._has_unreadable(job):
                self.lane.start("land", job=job.id).wait(STALL_SECONDS)
                job.landed = True
                self.report.done["jobs landed"] += 1
                self.open.add(job.id)
        if not self._all_end_within(WELL_SECONDS):
            say(f"{len(self.open)} jobs are open to the end")

    def _has_unreadable(self, job: Job) -> bool:
        try:
            record = self.lane.store.jobs.get(job.id)
        except JobNotFound:  # it is lost: the audit says so
            return False
        errors = (shard.error for shard in self.lane.store.shards.of_job(record, fields=("error",)))
        return record.closed and any(error is not None and error.code == "answer_unreadable" for error in errors)

    def _all_end_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._tend()
            self._count_down()
            if not (self.open or self._submits or self._resubmits or self._cancels):
                return True
            time.sleep(0.1)
        return False

    def _count_down(self) -> None:
        with suppress(StoreUnavailable):
            self.open -= {job_id for job_id in self.open if self.lane.store.jobs.get(job_id).closed}


def table(report: Report, plan: Plan) -> list[tuple[str, object]]:
    """What was done, line by line."""
    verdict = report.verdict
    return [
        ("seed", plan.seed),
        ("jobs", verdict.jobs),
        ("rows", verdict.rows),
        ("rows ok", verdict.ok),
        ("batches", verdict.batches),
        ("batches of losers, cancelled unpaid", verdict.losers),
        ("kill -9 of workers", report.done["worker kills"]),
        ("kill -9 within a pool", report.done["pool process kills"]),
        ("kill -9 of Redis", report.done["redis kills"]),
        ("freezes beyond the lease", report.done["freezes"]),
        ("workers that ended of themselves", len(report.deaths)),
        ("jobs cancelled", report.done["cancels"]),
        *((kind.done, report.done[kind.done]) for kind in KINDS.values() if kind.name != "lag"),
        (KINDS["lag"].done, report.hits["file_id_lags"] + report.hits["file_lags"]),
        ("jobs refused for their output", verdict.refused),
        ("jobs landed, for an answer was unreadable", report.done["jobs landed"]),
        ("jobs that waited for the provider to be well", report.done["jobs that waited for the provider to be well"]),
        ("API calls", report.calls),
        ("API faults", sum(report.hits.values())),
        ("seconds", f"{report.seconds:.0f}, of these {report.calm_seconds:.0f} after the last kill"),
    ]


def soak(folder: Path, plan: Plan) -> Report:
    """A soak with servers of its own."""
    with SharedServers(folder) as shared_servers:
        blowing = Soak(shared_servers, plan)
        try:
            return blowing()
        finally:
            blowing.close()
