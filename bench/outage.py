"""A five-minute outage that leaves creates without an answer: what it takes to find out what each of them made.

    python bench/outage.py [--shards 2000] [--others 2000]

The shipped turns, scripts and sweeps on a Redis of its own, against a provider in the same process. The clock is
simulated: it moves on by the CPU seconds that each turn and sweep takes here, as those of one worker process, and else
leaps to the next message or sweep; who sleeps for a slot lets others work. What the provider takes of the CPU is told
apart, and does not move the clock. Of the create calls during the outage none is answered, and every second one has
made a batch; reads fail. The list holds batches of others besides. It is run with a list that shows metadata and with
one that does not. All reads count until each shard has its batch: pages, batches one by one, files; those of the two
minutes after that are told.

The peer is what each shard did by itself before: two walks back to before its call, or one that finds its batch;
counted on the same list. Exits 1 if the reads of the recovery are more than three times the pages of the list, if it
takes more than five minutes, or if a row is paid for twice.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from _processes import redis_cpu

from batchpipe.errors import AmbiguousResult, Unavailable
from batchpipe.local_redis import acquire
from batchpipe.model.provider import CLOCK_SLACK_SECONDS
from batchpipe.model.records import Stage
from batchpipe.store import Store
from batchpipe.testing import FakeBatch, FakeOpenAI, Pump

OUTAGE_SECONDS, SWEEP_SECONDS, PAGE, AFTERWARDS_SECONDS = 300.0, 5.0, 100, 120.0
MOST_READS, MOST_SECONDS = 3.0, 300.0
PEER = "pages that the peer reads"
CREATES = ("create_batch", "create in the outage")
T = TypeVar("T")


class Provider(FakeOpenAI):
    """Counts its calls; while it is ``down`` no create is answered, and nothing can be read."""

    def __init__(self, *, metadata: bool) -> None:
        super().__init__()
        self.list_metadata = self.echo_metadata = metadata
        self.down = False
        self.asked: Counter[str] = Counter()  #: calls by name
        self.cpu = 0.0  #: seconds

    def reads(self) -> int:
        """All calls but those that create batches or files."""
        return sum(number for name, number in self.asked.items() if name not in (*CREATES, "upload"))

    def _called(self, method: str, argument: str, effect: Callable[[], T]) -> T:
        begun = time.process_time()
        try:
            if self.down and method == "create_batch":
                self.asked["create in the outage"] += 1
                if self.asked["create in the outage"] % 2:
                    effect()
                raise AmbiguousResult("the answer is lost")
            self.asked[method] += 1
            if self.down and method != "upload":
                raise Unavailable("HTTP 503", status=503)
            return super()._called(method, argument, effect)
        finally:
            self.cpu += time.process_time() - begun

    def pages(self, position: int) -> int:
        """Pages down to a place in the list."""
        return position // PAGE + 1


class Clock:
    """Lets a pump work, and its clock go on by the CPU that takes without the provider's."""

    def __init__(self, pump: Pump, api: Provider) -> None:
        self.pump, self.api, self.swept, self.turns = pump, api, 0.0, 0
        self.asleep = 0  #: how many sleep for their slots
        self.cpu = 0.0
        pump.shard_runner.sleep = pump.job_runner.sleep = self.sleep

    def run(self, until: float) -> None:
        """Do what there is to do up to then."""
        while self.pump.at < until:
            begun, known = time.process_time() - self.api.cpu, self.cpu
            if not self._work():
                moments = [delivery.at for delivery in self.pump.waiting] + [self.swept + SWEEP_SECONDS, until]
                self.pump.advance(max(min(moments) - self.pump.at, 0.0) + 0.001)
            took = time.process_time() - self.api.cpu - begun - (self.cpu - known)  # without what ran while it slept
            self.cpu += took
            self.pump.advance(took)

    def sleep(self, seconds: float) -> None:
        """Others work meanwhile: threads of the worker."""
        self.asleep += 1
        self.run(self.pump.at + seconds)
        self.asleep -= 1

    def _work(self) -> bool:
        if self.pump.at - self.swept >= SWEEP_SECONDS:
            self.swept = self.pump.at
            self.pump.sweep()
        elif self.pump.step() is not None:
            self.turns += 1
        else:
            return False
        return True


def others(api: Provider, count: int, pump: Pump) -> None:
    """Batches of other programs that were made in the hour before."""
    for number in range(count):
        name = f"batch_other_{number}"
        metadata = {"made_by": "others"}
        made = pump.at - 3_600.0 * (count - number) / count
        file = f"file-other-{number}"
        api.batches[name] = FakeBatch(name, file, [], metadata, {}, made, status="completed")


def peers(api: Provider, pump: Pump, job_id: str) -> int:
    """Calls for pages if each shard walks by itself: down to its batch, or, twice, back to before its call."""
    newest = list(reversed(api.batches.values()))
    place = {batch.metadata.get("batchpipe_key"): number for number, batch in enumerate(newest)}
    total = 0
    for shard in pump.shards(job_id):
        if not shard.calls:
            continue
        if shard.key in place:
            total += api.pages(place[shard.key])
        else:
            since = (shard.intent_at or 0.0) - CLOCK_SLACK_SECONDS
            total += 2 * api.pages(sum(batch.created_at >= since for batch in newest))
    return total


def request(number: int) -> dict[str, Any]:
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}


def measure(url: str, folder: Path, shards: int, strangers: int, *, metadata: bool) -> dict[str, float]:
    api = Provider(metadata=metadata)
    store = Store.connect(url, prefix=f"{{outage{metadata}}}:")
    pump = Pump(folder, api=api, store=store, max_rows=1)
    others(api, strangers, pump)
    job_id = pump.submit([request(number) for number in range(shards)])
    clock = Clock(pump, api)
    api.down = True
    clock.run(pump.at + OUTAGE_SECONDS)
    unanswered = sum(bool(shard.calls) for shard in pump.shards(job_id))
    listed, alone, failed = len(api.batches), peers(api, pump, job_id), api.reads()
    api.down, began, cpu, turns = False, pump.at, clock.cpu, clock.turns
    api.asked.clear()
    api.cpu, redis_cpu = 0.0, cpu_of(store)
    while pump.at < began + 2 * MOST_SECONDS and not has_all(pump, store, job_id):
        clock.run(pump.at + 1.0)
    made = Counter(key for batch in api.batches.values() if (key := batch.metadata.get("batchpipe_key")))
    found = {
        "unanswered": unanswered,
        "failed reads in the outage": failed,
        "pages of the list": -(-listed // PAGE),
        "reads": api.reads(),
        "of these pages": api.asked["batch_page"],
        "of these batches one by one": api.asked["retrieve"],
        "of these files": api.reads() - api.asked["batch_page"] - api.asked["retrieve"],
        "creates": api.asked["create_batch"],
        "seconds": pump.at - began,
        "turns": clock.turns - turns,
        "CPU seconds of the worker": clock.cpu - cpu,
        "CPU seconds of Redis": cpu_of(store) - redis_cpu,
        "CPU seconds of the provider": api.cpu,
        PEER: alone,
        "paid twice": sum(number > 1 for number in made.values()),
        "without a batch": shards - len(made),
    }
    api.asked.clear()
    clock.run(pump.at + AFTERWARDS_SECONDS)
    found["pages in two minutes after"] = api.asked["batch_page"]
    found["single reads in these"] = api.reads() - api.asked["batch_page"]
    return found


def has_all(pump: Pump, store: Store, job_id: str) -> bool:
    """Whether each shard has its batch."""
    if store.unanswered.count("default"):
        return False
    return all(shard.stage not in (Stage.PLANNED, Stage.UPLOADED) for shard in pump.shards(job_id))


def cpu_of(store: Store) -> float:
    """Seconds of the Redis process."""
    return float(redis_cpu(store.connection.client))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=2_000)
    parser.add_argument("--others", type=int, default=2_000)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    good = True
    for metadata in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            handle = acquire(Path(folder) / "redis-home", environment={})
            try:
                found = measure(handle.server.url, Path(folder), options.shards, options.others, metadata=metadata)
            finally:
                handle.close()
        print(f"\na list {'with' if metadata else 'without'} metadata")
        for name, value in found.items():
            print(f"{name:>28}: {value:,.1f}" if isinstance(value, float) else f"{name:>28}: {value:,}")
        ratio = found["reads"] / found["pages of the list"]
        print(f"{'reads to pages of the list':>28}: {ratio:.2f} (at most {MOST_READS:.0f})")
        print(f"{'peer to reads':>28}: {found[PEER] / max(found['reads'], 1):,.0f}")
        good = good and ratio <= MOST_READS and found["seconds"] <= MOST_SECONDS
        good = good and found["paid twice"] == found["without a batch"] == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
