"""A five-minute outage that leaves creates without an answer: what it takes to find out what each of them made.

    python bench/outage.py [--shards 2000] [--others 2000]

The shipped turns, scripts and sweeps on a Redis of its own, against a provider in the same process. The clock is
simulated: it moves on by what each turn and sweep takes here, shared by four worker processes, and else leaps to the
next message or sweep. Of the create calls during the outage none is answered, and every second one has made a batch;
lists fail. The list holds batches of others besides. It is run with a list that shows metadata and with one that does
not. Reads of batches one by one are polls of those that have their batch again; they are told, and not counted.

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
from pathlib import Path
from typing import Any

from batchpipe.errors import AmbiguousResult, Unavailable
from batchpipe.local_redis import acquire
from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Batch, BatchPage
from batchpipe.model.records import Stage
from batchpipe.store import Store
from batchpipe.testing import FakeBatch, FakeOpenAI, Pump

OUTAGE_SECONDS, WORKERS, SWEEP_SECONDS, PAGE = 300.0, 4, 5.0, 100
MOST_READS, MOST_SECONDS = 3.0, 300.0
PEER = "pages that the peer reads"


class Provider(FakeOpenAI):
    """Counts its calls; while it is ``down`` no create is answered, and nothing can be read."""

    def __init__(self, *, metadata: bool) -> None:
        super().__init__()
        self.list_metadata = self.echo_metadata = metadata
        self.down = False
        self.reads: Counter[str] = Counter()
        self.made: list[FakeBatch] = []  #: newest first, as the list has them

    def create_batch(self, **arguments: Any) -> Batch:
        if not self.down:
            self.reads["create"] += 1
            return super().create_batch(**arguments)
        self.reads["create in the outage"] += 1
        if self.reads["create in the outage"] % 2:
            super().create_batch(**arguments)
        raise AmbiguousResult("the answer is lost")

    def batch_page(self, after: str | None = None) -> BatchPage:
        self.reads["page"] += 1
        if self.down:
            raise Unavailable("HTTP 503", status=503)
        return super().batch_page(after)

    def retrieve(self, batch_id: str) -> Batch:
        self.reads["retrieve"] += 1
        if self.down:
            raise Unavailable("HTTP 503", status=503)
        return super().retrieve(batch_id)

    def file_status(self, file_id: str) -> str | None:
        self.reads["file"] += 1
        if self.down:
            raise Unavailable("HTTP 503", status=503)
        return super().file_status(file_id)

    def pages(self, position: int) -> int:
        """Pages down to a place in the list."""
        return position // PAGE + 1


class Clock:
    """Lets a pump work, and its clock go on by what that takes."""

    def __init__(self, pump: Pump) -> None:
        self.pump, self.swept, self.cpu, self.turns = pump, 0.0, 0.0, 0

    def work(self, until: float) -> bool:
        """Do what is next, but nothing that begins after ``until``. False: nothing is."""
        pump, begun = self.pump, time.process_time()
        if pump.at - self.swept >= SWEEP_SECONDS:
            self.swept = pump.at
            pump.sweep()
        elif pump.step() is not None:
            self.turns += 1
        else:
            moments = [delivery.at for delivery in pump.waiting] + [self.swept + SWEEP_SECONDS]
            if min(moments) > until:
                return False
            pump.advance(max(min(moments) - pump.at, 0.0) + 0.001)
        took = time.process_time() - begun
        self.cpu += took
        pump.advance(took / WORKERS)
        return pump.at < until


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
    clock = Clock(pump)
    api.down, ends = True, pump.at + OUTAGE_SECONDS
    while clock.work(ends):
        pass
    pump.advance(max(ends - pump.at, 0.0))
    unanswered = sum(bool(shard.calls) for shard in pump.shards(job_id))
    listed, alone, failed = len(api.batches), peers(api, pump, job_id), dict(api.reads)
    api.down, began, cpu, turns = False, pump.at, clock.cpu, clock.turns
    api.reads.clear()
    while pump.at < began + 4 * MOST_SECONDS:
        clock.work(pump.at + 60.0)
        done = clock.turns % 50 == 0 and store.unanswered.count("default") == 0
        if done and all(shard.stage not in (Stage.PLANNED, Stage.UPLOADED) for shard in pump.shards(job_id)):
            break
    made = Counter(key for batch in api.batches.values() if (key := batch.metadata.get("batchpipe_key")))
    return {
        "unanswered": unanswered,
        "failed reads in the outage": failed.get("page", 0),
        "pages of the list": -(-listed // PAGE),
        "pages read": api.reads["page"],
        "files read": api.reads["file"],
        "batches read": api.reads["retrieve"],
        "creates": api.reads["create"],
        "seconds": pump.at - began,
        "turns": clock.turns - turns,
        "CPU seconds": clock.cpu - cpu,
        PEER: alone,
        "paid twice": sum(number > 1 for number in made.values()),
        "without a batch": shards - len(made),
    }


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
        ratio = (found["pages read"] + found["files read"]) / found["pages of the list"]
        print(f"{'reads to pages of the list':>28}: {ratio:.2f} (at most {MOST_READS:.0f})")
        print(f"{'peer to reads':>28}: {found[PEER] / max(found['pages read'] + found['files read'], 1):,.0f}")
        good = good and ratio <= MOST_READS and found["seconds"] <= MOST_SECONDS
        good = good and found["paid twice"] == found["without a batch"] == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
