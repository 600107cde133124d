"""``python -m tests.chaos``: the fault suite. Prints a table with the seed; ends with 1 if a zero is none.

The soak (jobs, kills, freezes, faults at random) comes first, then every armed crash point alone, then random pairs.
``--kinds`` and ``--without`` choose what goes wrong in the soak, so that a kind which fails can be looked at alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.audit import Audit
from tests.chaos.crash_points import SCENARIOS, Case, Range, all_cases, freezes, frozen_before_the_call, pairs
from tests.chaos.faketime import FakeTime
from tests.chaos.points import Point
from tests.chaos.servers import SharedServers, say
from tests.chaos.soak import ALL_KINDS, UNMENDED, Plan, Report, soak, table

#: The armed points of the short form: the paid call and its neighbours, and where the truth is written.
SHORT = {
    "plain": [
        "before:store.plan=kill",
        "before:store.intent=kill",
        "after:store.intent=kill",
        "after:store.intent=stop",
        "before:api.create_batch=kill",
        "after:api.create_batch=kill",
        "after:api.create_batch=stop",
        "before:store.settle=kill",
        "after:store.settle=kill",
        "after:storage.commit.collected-rows=kill",
        "after:store.record_job_end=kill",
    ],
    "create unanswered": ["before:api.batch_page=kill", "after:api.batch_page=kill", "before:store.settle=kill"],
    "token limit": ["after:store.advance#3=kill"],
    "cancelled": ["after:api.cancel_batch=kill"],
}


@dataclass
class Armed:
    """What came of the armed points."""

    cases: int = 0
    struck: int = 0
    late_calls: int = 0
    undone: int = 0  #: batches of late calls that were cancelled in time
    bad: list[str] = field(default_factory=list)
    verdict: Audit = field(default_factory=Audit)
    seconds: float = 0.0

    def take(self, cases: Iterable[Case], lanes: Range) -> None:
        for outcome in lanes.run(cases):
            self.cases += 1
            self.struck += outcome.struck == len(outcome.case.points)
            self.verdict.add(outcome.verdict)
            if outcome.struck < len(outcome.case.points):
                say(f"not passed this time: {outcome.case} ({outcome.struck} struck)")
            if not outcome.good:
                self.bad.append(str(outcome))
                say(f"not good: {outcome}")

    def take_the_late_call(self, verdict: Audit) -> None:
        """A paid call came too late: there must be one batch too many, cancelled before a row of it ran."""
        self.late_calls += 1
        self.undone += verdict.losers
        self.verdict.add(verdict)
        if not verdict.good:
            self.bad.append(f"frozen before the paid call: {verdict}")


def short_cases() -> list[Case]:
    """The armed points that every run of the tests tries."""
    return [Case(scenario, (Point.parse(text),)) for scenario, texts in SHORT.items() for text in texts]


def armed(folder: Path, seed: int, *, short: bool, lanes: int, pair_count: int) -> Armed:
    """Stop a worker at each point, then at random pairs of them, and in the moment before the paid call."""
    began, found = time.monotonic(), Armed()
    with SharedServers(folder) as shared_servers, ThreadPoolExecutor(2) as aside:
        late = [
            aside.submit(frozen_before_the_call, shared_servers, lanes + 1 + dies, dies=bool(dies)) for dies in (0, 1)
        ]
        with Range(shared_servers, lanes) as places:
            if short:
                found.take(short_cases(), places)
            else:
                points = places.points(list(SCENARIOS))
                for cases in (all_cases(points), freezes(points), pairs(points, pair_count, random.Random(seed))):
                    say(f"{len(cases)} armed cases")
                    found.take(cases, places)
        for result in late:
            found.take_the_late_call(result.result())
    found.seconds = time.monotonic() - began
    return found


def _plan(options: argparse.Namespace) -> Plan:
    jobs = options.jobs
    if options.short:
        amounts: dict[str, Any] = {"kills": 7, "redis_kills": 1, "freezes": 2, "slow": 0.2, "calm": 8.0}
        return Plan(options.seed, jobs, options.seconds, kinds=_kinds(options), **amounts)
    return Plan(
        options.seed,
        jobs,
        options.seconds,
        kills=max(1, round(jobs * 0.35)),
        redis_kills=max(1, jobs // 50),
        freezes=max(1, round(jobs / 13)),
        kinds=_kinds(options),
    )


def _kinds(options: argparse.Namespace) -> tuple[str, ...]:
    """What goes wrong in the soak: all kinds, or those that are named, without those that are left out."""
    chosen = options.kinds or [kind for kind in ALL_KINDS if kind not in UNMENDED]
    return tuple(kind for kind in chosen if kind not in (options.without or ()))


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(ALL_KINDS)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(ALL_KINDS)}")
    return names


def main() -> int:
    """Parse, run, print."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="batchpipe-chaos-"))
    plan = _plan(options)
    if "clock" in plan.kinds and not FakeTime.is_installed():
        say("libfaketime is not installed (Debian: apt install faketime): Redis' clock is not moved")
    say(f"seed {plan.seed}, logs in {folder} (kept if it ends badly)")
    with ThreadPoolExecutor(2) as pool:
        # the short form is in a hurry: both at once
        soaking = pool.submit(soak, folder / "soak", plan) if options.only != "armed" else None
        if soaking is not None and not options.short:
            say(f"the soak is over: {soaking.result().verdict}")
        arming = (
            pool.submit(
                armed, folder / "armed", plan.seed, short=options.short, lanes=options.lanes, pair_count=options.pairs
            )
            if options.only != "soak"
            else None
        )
        soaked = soaking.result() if soaking is not None else None
        tried = arming.result() if arming is not None else None
    code = _tell(plan, soaked, tried, options.json)
    if code == 0:
        shutil.rmtree(folder)  # the logs tell something only where something is wrong
    return code


def _tell(plan: Plan, soaked: Report | None, tried: Armed | None, to: Path | None) -> int:
    lines: list[tuple[str, object]] = table(soaked, plan) if soaked is not None else [("seed", plan.seed)]
    total = Audit()
    bad: list[str] = []
    if soaked is not None:
        total.add(soaked.verdict)
        bad += [] if soaked.verdict.good else [str(soaked.verdict)]
        for death in soaked.deaths:
            say(f"not killed by us: {death}")
    if tried is not None:
        total.add(tried.verdict)
        bad += tried.bad
        lines += [
            ("armed cases", tried.cases),
            ("of these struck", tried.struck),
            ("late paid calls", tried.late_calls),
            ("of these undone", tried.undone),
            ("armed cases that did not end well", len(tried.bad)),
            ("seconds of armed cases", f"{tried.seconds:.0f}"),
        ]
    lines += [(name, len(found)) for name, found in total.zeros.items()]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    for text in bad:
        print(text)
    if to is not None:
        to.write_text(json.dumps({**dict(lines), "bad": bad}))
    return 1 if bad or not total.good else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--seconds", type=float, help="length of the soak, without the calm after it")
    parser.add_argument("--pairs", type=int, default=100, help="random pairs of armed points")
    parser.add_argument("--lanes", type=int, default=6, help="armed cases at once")
    parser.add_argument("--only", choices=["soak", "armed"])
    parser.add_argument("--kinds", type=_names, help=f"only these kinds of trouble in the soak: {','.join(ALL_KINDS)}")
    parser.add_argument("--without", type=_names, help="all kinds but these")
    parser.add_argument("--short", action="store_true", help="the form that is part of the tests")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args()
    options.jobs = options.jobs or (20 if options.short else 300)
    options.seconds = options.seconds or (8.0 if options.short else 220.0)
    return options


if __name__ == "__main__":
    sys.exit(main())
