"""A worker is stopped at one step boundary, then at each other one; somebody else always brings the job to its end.

A case is a scenario and up to two points. The first run of a scenario only records which points it passes.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.chaos.audit import Audit, judge
from tests.chaos.points import Point
from tests.chaos.servers import Job, Lane, SharedServers, requests, until
from tests.forkserver import STALL_SECONDS, Child

#: Shorter than in the soak: a case waits for the lease of who was killed.
PACE = {
    "LEASE_SECONDS": "1",
    "POLL_MIN_SECONDS": "0.1",
    "POLL_MAX_SECONDS": "0.3",
    "CREATE_GRACE_SECONDS": "0.5",
}
#: What is frozen stays so until its lease is over and somebody else has had time to go on.
FROZEN_SECONDS = 2.0
CASE_SECONDS = 120.0

Prepare = Callable[[Lane], Job]


@dataclass(frozen=True)
class Scenario:
    """What the provider does with a job, and what the user does meanwhile."""

    name: str
    prepare: Prepare
    cancels: bool = False  #: the user cancels when both batches exist, or the worker is gone
    armed: str = "worker"  #: who is stopped: worker, submit or cancel


def _plain(lane: Lane) -> Job:
    return lane.new_job(requests(6), max_rows=3)


def _with(*faults: tuple[str, dict[str, Any]], **options: Any) -> Prepare:
    def prepare(lane: Lane) -> Job:
        for kind, how in faults:
            lane.sandbox.faults.add(kind, **how)
        return lane.new_job(requests(6), max_rows=3, **options)

    return prepare


def _a_row_is_refused(lane: Lane) -> Job:
    lane.sandbox.faults.add("row_fails", custom_id="^r2$", status=400, code="invalid_request")
    job = _plain(lane)
    job.refused.add("r2")
    return job


def _refused_whole(lane: Lane) -> Job:
    lane.sandbox.faults.add("status", route="POST /v1/batches", status=400, times=1, message="no such endpoint")
    job = _plain(lane)
    job.refused_whole = True
    return job


def _stuck(lane: Lane) -> Job:
    lane.sandbox.faults.add("stuck")
    return _plain(lane)


_CREATE = "POST /v1/batches"
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("plain", _plain),
        Scenario("a row fails once", _with(("row_fails", {"custom_id": "^r2$", "row_times": 1}), attempts=3)),
        Scenario("a row is refused", _a_row_is_refused),
        Scenario("create unanswered", _with(("drop_after", {"route": _CREATE, "times": 1}))),
        Scenario("create never sent on", _with(("drop_before", {"route": _CREATE, "times": 1}))),
        Scenario("create put off", _with(("status", {"route": _CREATE, "status": 429, "times": 1}))),
        Scenario("create refused", _refused_whole),
        Scenario("token limit", _with(("token_limit", {"times": 1}))),
        Scenario("batch expires", _with(("expire", {"times": 1, "fraction": 0.5}), attempts=3)),
        Scenario("cancelled", _stuck, cancels=True),
        Scenario("submit", _plain, armed="submit"),
        Scenario("cancel", _stuck, cancels=True, armed="cancel"),
    )
}


@dataclass(frozen=True)
class Case:
    """Where to stop whom, one after the other."""

    scenario: str
    points: tuple[Point, ...]

    def __str__(self) -> str:
        return f"{self.scenario}: {', '.join(map(str, self.points))}"


@dataclass
class Outcome:
    """What came of a case."""

    case: Case
    struck: int = 0  #: how many of its points were reached
    seconds: float = 0.0
    verdict: Audit = field(default_factory=Audit)
    broken: str = ""  #: it did not come to its end
    folder: str = ""

    @property
    def good(self) -> bool:
        return not self.broken and self.verdict.good

    def __str__(self) -> str:
        return f"{self.case} ({self.seconds:.1f} s, {self.struck} struck, {self.folder}): {self.broken} {self.verdict}"


# -- one case ------------------------------------------------------------------------------------------------------


class _Run:
    """One case in one lane."""

    def __init__(self, lane: Lane, case: Case, record: Path | None = None) -> None:
        self.lane, self.case, self.record = lane, case, record
        self.scenario = SCENARIOS[case.scenario]
        self.outcome = Outcome(case)
        self.points = list(case.points)

    def __call__(self) -> Outcome:
        began = time.monotonic()
        self.lane.clear()
        self.job = self.scenario.prepare(self.lane)
        self.outcome.folder = str(self.job.output)
        try:
            self._submit()
            self._work()
            until(self._told, CASE_SECONDS, "the end of the job")
        except (TimeoutError, AssertionError) as error:
            self.outcome.broken = str(error)
        self.outcome.verdict = judge(self.lane, [self.job])
        self.lane.end_children()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _submit(self) -> None:
        if self.scenario.armed == "submit":
            self._until_struck(self.lane.start_submit(self.job, chaos=self._next_point()))
        self.lane.submit(self.job)

    def _work(self) -> None:
        if self.scenario.armed != "worker":
            self._worker(chaos=self._recording() if self.scenario.armed == "worker" else None)
            if self.scenario.cancels:
                self._cancel(None)
            return
        cancelled = not self.scenario.cancels
        while self.points or self.record is not None:
            worker = self._worker(chaos=self._next_point())
            if not cancelled:
                self._cancel(worker)
                cancelled = True
            frozen = self._until_struck(worker)
            if frozen is not None:
                self._worker()
                time.sleep(FROZEN_SECONDS)  # the length of a lease and more: that is the case
                frozen.thaw()
            if self._told():
                return
            self.record = None
        self._worker()
        if not cancelled:
            self._cancel(None)

    def _cancel(self, worker: Child | None) -> None:
        until(
            lambda: len(self.lane.sandbox.batches.all()) == 2 or (worker is not None and worker.code is not None),
            CASE_SECONDS,
            "both batches are created",
        )
        if self.scenario.armed == "cancel":
            self._until_struck(self.lane.start("cancel", chaos=self._next_point(), job=self.job.id))
            if self.lane.store.jobs.get(self.job.id).cancel:  # the flag is the truth: the rest follows
                self.job.cancelled = True
                return
        self.job.cancelled = True
        self.lane.start("cancel", job=self.job.id).wait(STALL_SECONDS)

    def _worker(self, chaos: dict[str, str] | None = None) -> Child:
        return self.lane.start("worker", pool="solo", concurrency=1, sweep_every=0.2, chaos=chaos)

    def _next_point(self) -> dict[str, str]:
        if self.record is not None:
            return self._recording()
        if not self.points:
            return {}
        marker = self.lane.folder / f"{self.job.key}-struck{len(self.points)}"
        return {"POINT": str(self.points.pop(0)), "MARKER": str(marker)}

    def _recording(self) -> dict[str, str]:
        return {"RECORD": str(self.record)} if self.record is not None else {}

    def _until_struck(self, child: Child) -> Child | None:
        """Wait until a child is gone or its job has ended. Answers the child if it froze."""
        left = len(self.points) + 1
        act = self.case.points[-left].act if self.case.points else "kill"
        marker = self.lane.folder / f"{self.job.key}-struck{left}.{act}"
        until(lambda: child.code is not None or marker.exists() or self._told(), CASE_SECONDS, "the point")
        if not marker.exists():
            return None
        self.outcome.struck += 1
        if act == "stop":
            return child
        child.wait(STALL_SECONDS)
        return None

    def _told(self) -> bool:
        return bool(self.job.id and self.lane.store.jobs.get(self.job.id).closed)


# -- many cases ----------------------------------------------------------------------------------------------------


class Range:
    """Lanes in which cases run side by side."""

    def __init__(self, shared_servers: SharedServers, lanes: int, first: int = 1) -> None:
        self._lanes = [Lane(shared_servers, first + number, pace=PACE) for number in range(lanes)]
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")

    def __enter__(self) -> Range:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for lane in self._lanes:
            lane.close()

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)

    def run(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        return self._pool.map(self._run, cases)

    def _run(self, case: Case) -> Outcome:
        with self._lane() as lane:
            return _Run(lane, case)()

    def points(self, scenarios: Sequence[str]) -> dict[str, Counter[str]]:
        """The points that a run of each scenario passes, in order of their first pass, and how often."""
        return dict(zip(scenarios, self._pool.map(self._record, scenarios), strict=True))

    def _record(self, scenario: str) -> Counter[str]:
        with self._lane() as lane:
            record = lane.folder / f"points-{scenario.replace(' ', '-')}"
            outcome = _Run(lane, Case(scenario, ()), record)()
            assert outcome.good, outcome
            return Counter(record.read_text().split("\n")[:-1])


#: Boundaries that matter in each scenario, though the plain run passes them, too.
_NEAR = re.compile(
    r"(before|after):(api\.|store\.(advance|claim|intent|bump_epoch|settle|withdraw)|celery\.send\.create)"
)


def all_cases(points: dict[str, Counter[str]]) -> list[Case]:
    """Kill at each point of the plain run, at its first pass and at its last; in each other scenario at each point
    that the plain run does not pass, and at what is near to the provider and to the records.
    """
    cases = []
    for scenario, counts in points.items():
        for name, count in counts.items():
            is_new = scenario == "plain" or name not in points["plain"] or SCENARIOS[scenario].armed != "worker"
            if is_new or _NEAR.match(name):
                passes = sorted({1, count}) if is_new else [min(2, count)]
                cases += [Case(scenario, (Point(name, nth),)) for nth in passes]
    return cases


def freezes(points: dict[str, Counter[str]]) -> list[Case]:
    """Freeze beyond the lease at each call and each write of the plain run. The moment right before the paid call is
    tried on its own: there the loser's batch is made, and must be cancelled.
    """
    names = [name for name in points["plain"] if re.match(r"(before|after):(api|store|storage)\.", name)]
    return [
        Case("plain", (Point(name, 1, "stop"),))
        for name in names
        if name not in ("before:api.create_batch", "before:store.take_rate_token") and not name.endswith("store.log")
    ]


def pairs(points: dict[str, Counter[str]], count: int, dice: random.Random) -> list[Case]:
    """Random pairs of points: two workers are killed, one after the other."""
    cases = []
    names = [scenario for scenario in points if SCENARIOS[scenario].armed == "worker"]
    for _ in range(count):
        scenario = dice.choice(names)
        found = sorted(points[scenario].items())
        chosen = [dice.choice(found) for _ in range(2)]
        cases.append(Case(scenario, tuple(Point(name, dice.randint(1, passes)) for name, passes in chosen)))
    return cases


# -- frozen between the last look at the clock and the paid call ---------------------------------------------------


def frozen_before_the_call(shared_servers: SharedServers, number: int, *, dies: bool) -> Audit:
    """A worker freezes right before its paid call, beyond its lease; another makes the batch; then the first thaws and
    calls, too. Its batch must be cancelled: by itself, or where it ``dies`` right after the call, by one sweep.
    """
    lane = Lane(shared_servers, number, pace=PACE, validating_seconds=4.0)
    try:
        job = lane.new_job(requests(3))
        lane.submit(job)
        marker = lane.folder / "struck"
        point = "before:api.create_batch=stop" + (",after:api.create_batch=kill" if dies else "")
        armed = {"POINT": point, "MARKER": str(marker)}
        late = lane.start("worker", pool="solo", concurrency=1, chaos=armed)
        until(lambda: marker.with_suffix(".stop").exists(), CASE_SECONDS, "the worker is about to call")
        lane.start("worker", pool="solo", concurrency=1, sweep_every=0.2)
        until(lambda: lane.sandbox.batches.all(), CASE_SECONDS, "the other worker has made the batch")
        late.thaw()
        until(lambda: len(lane.sandbox.batches.all()) == 2, CASE_SECONDS, "the late worker has called")
        if dies:
            late.wait(STALL_SECONDS)
            lane.start("sweep").wait(STALL_SECONDS)
        until(lambda: lane.store.jobs.get(job.id).closed, CASE_SECONDS, "the end of the job")
        return judge(lane, [job])
    finally:
        lane.close()
