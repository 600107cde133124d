"""What a `submit` of a path costs, beside a bare Celery ``apply_async``: CPU, time, round trips, fsyncs.

    python bench/submit.py [--calls 1000] [--threads 20]

The bare one is of a plain Celery app. Both publish to the same Redis from the same process: a hundred calls of each at
a time, and one of each in turn, as in a service that does something else in between (a hundred bare calls in a row find
everything in the processor's caches). Then from so many threads at once. Nothing may be lost: every job is in Redis,
with its message. Exits 1 if a submit takes more than two round trips or one fsync, if in turn its CPU is above 1 ms or
above three times that of ``apply_async`` (one of the two must hold: cores differ, and others may use them), or if from
many threads it takes more than 1.3 times the CPU of one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from waiting import redis_server

MOST_CPU, MOST_FACTOR, MOST_GROWTH = 1e-3, 3.0, 1.3
#: Calls of each before the other's turn.
BLOCK = 100
#: Commands of Redis that are not sent by a submit, but by this script or at the first connection.
_NOT_OURS = {"info", "config|resetstat", "client|setinfo", "hello", "ping", "script|load", "client|setname", "select"}


class Taken:
    """CPU and time of calls."""

    def __init__(self) -> None:
        self.cpu, self.each = 0.0, list[float]()

    def run(self, call: Callable[[], object], calls: int) -> None:
        before = time.process_time()
        for _ in range(calls):
            began = time.perf_counter()
            call()
            self.each.append(time.perf_counter() - began)
        self.cpu += time.process_time() - before

    def __str__(self) -> str:
        cuts = statistics.quantiles(self.each, n=100)
        p50, p99 = cuts[49] * 1e3, cuts[98] * 1e3
        return f"{self.cpu / len(self.each) * 1e3:8.2f} {p50:8.2f} {p99:8.2f}"

    @property
    def cpu_each(self) -> float:
        return self.cpu / len(self.each)


def from_threads(call: Callable[[], object], calls: int, threads: int) -> float:
    """CPU seconds of each call."""
    workers = [
        threading.Thread(target=lambda: [call() for _ in range(calls // threads)], daemon=True) for _ in range(threads)
    ]
    before = time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.process_time() - before) / calls


def commands_of(store: redis.Redis, call: Callable[[], object]) -> tuple[float, float]:
    """What a call sends to Redis, and what Redis runs for it: means of a hundred."""
    store.config_resetstat()
    for _ in range(BLOCK):
        call()
    stats = {name.removeprefix("cmdstat_"): row["calls"] for name, row in store.info("commandstats").items()}
    sent = sum(stats.get(name, 0) for name in ("evalsha", "lpush", "eval"))
    run = sum(calls for name, calls in stats.items() if name not in _NOT_OURS)
    return sent / BLOCK, run / BLOCK


def fsyncs_of(call: Callable[[], object]) -> float:
    real, found = os.fsync, count()

    def counted(handle: Any) -> None:
        next(found)
        real(handle)

    os.fsync = counted  # type: ignore[assignment]
    try:
        for _ in range(10):
            call()
    finally:
        os.fsync = real
    return next(found) / 10


def measure(folder: Path, store: redis.Redis, options: argparse.Namespace) -> int:
    import batchpipe

    numbers, source = count(), folder / "in.jsonl"
    body = {"model": "gpt-4o-mini", "messages": []}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    source.write_text(json.dumps(row) + "\n")

    def ours() -> object:
        return batchpipe.submit(source, output=folder / f"out-{next(numbers)}")

    plain = Celery("plain", broker=os.environ["BATCHPIPE_BROKER_URL"], set_as_current=False)
    plain.conf.task_ignore_result = True
    bare = plain.signature("other.task", kwargs={"job": "x"}, queue="other")

    def peer() -> object:
        return bare.apply_async()

    store.zadd("{batchpipe}:listening", {"batchpipe\nworker": time.time() + 86_400})  # as if a worker listened
    for call in (ours, peer):
        for _ in range(20):
            call()
    found = {name: Taken() for name in ("apply_async", "submit", "apply_async, in turn", "submit, in turn")}
    for _ in range(options.calls // BLOCK):
        found["apply_async"].run(peer, BLOCK)
        found["submit"].run(ours, BLOCK)
    for _ in range(options.calls):
        found["apply_async, in turn"].run(peer, 1)
        found["submit, in turn"].run(ours, 1)
    many = from_threads(ours, options.calls, options.threads)
    sent, run = commands_of(store, ours)
    fsyncs = fsyncs_of(ours)
    jobs, messages = store.zcard("{batchpipe}:jobs"), store.llen("batchpipe")
    print(f"{'':22}{'CPU ms':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for name, taken in found.items():
        print(f"{name:22}{taken}")
    cpu, bare = found["submit, in turn"].cpu_each, found["apply_async, in turn"].cpu_each
    factor, growth = cpu / bare, many / found["submit"].cpu_each
    print(f"{factor:.2f} x the CPU of apply_async (at most {MOST_FACTOR}, or {MOST_CPU * 1e3:g} ms)")
    print(f"{sent:g} commands sent (at most 2), {run:.1f} run, {fsyncs:g} fsyncs (at most 1)")
    print(f"{options.calls} from {options.threads} threads: {growth:.2f} x the CPU of one (at most {MOST_GROWTH})")
    lost = next(numbers) - jobs
    print(f"{jobs} jobs in Redis, {lost} lost; {messages} messages")
    good = cpu <= MOST_CPU or factor <= MOST_FACTOR
    good = good and sent <= 2 and fsyncs <= 1 and growth <= MOST_GROWTH and not lost and messages == jobs
    print("ok" if good else "MISSED")
    return int(not good)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bp-") as name:
        folder = Path(name)
        with redis_server(folder) as store:
            os.environ |= {
                "BATCHPIPE_REDIS_URL": f"unix://{folder}/redis.sock",
                "BATCHPIPE_BROKER_URL": f"redis+socket://{folder}/redis.sock",
                "BATCHPIPE_HOME": f"{folder}/home",
                "OPENAI_API_KEY": "bench",
            }
            return measure(folder, store, options)


if __name__ == "__main__":
    sys.exit(main())
