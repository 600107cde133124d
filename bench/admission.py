"""How well room at the provider is used: many shards of a few jobs, and a queue of tokens that holds ten of them.

    python bench/admission.py [--shards 200] [--room 10] [--seconds 20] [--kill 4] [--freeze-sweep 600]

A sandbox with a queue of tokens, a Redis, workers and beat, each of the workers a process of its own. Five jobs, from
one shard to most of them, submitted at once; the limit is not in the settings, so it is learned from the first
refusals. The ideal schedule of the same run: all room is always in use, and each batch takes as long as it really was
at the sandbox. ``--kill N``: so many workers, one of which is killed at random and started again about each
``--kill-every`` seconds; ``--freeze-sweep S``: no sweep runs in the first so many seconds. What it prints first is
where the time of a place goes between two batches. Fails if a shard is refused after the limit is known, room is less
than 90 % in use while shards wait, a small job ends later than half of the largest, a row is paid twice, or it takes
more than 1.15 times as long as the ideal.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from _processes import cpu_of
from _room_use import Watched, breakdown

from batchpipe.client.client import Client
from batchpipe.client.job import Job
from batchpipe.config.loading import load_settings
from batchpipe.sandbox import Sandbox

MOST_TIMES, LEAST_USED = 1.15, 0.9
ROWS = 40
#: CPU seconds that killed workers had taken.
KILLED: list[float] = []
#: Parts of all shards: the sizes of the five jobs.
SIZES = (0.6, 0.3, 0.075, 0.02, 0.005)


def make_requests(path: Path, shards: int) -> Path:
    with path.open("w") as file:
        for number in range(shards * ROWS):
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"{number:06d} " + "x" * 400}]}
            row = {"custom_id": f"r{number:06d}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")
    return path


def start(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    with (folder / "processes.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "batchpipe", *command], cwd=folder, stdout=log, stderr=log)


@contextmanager
def processes(folder: Path, options: argparse.Namespace) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers and beat; the workers are killed at random, one of them about each ``--kill-every`` seconds."""
    worker = ("worker", "--concurrency", "8")
    count = max(options.kill, options.workers)
    running = [start(folder, *worker) for _ in range(count)]
    running += [start(folder, "beat")] if not options.freeze_sweep else []
    done, dice = threading.Event(), random.Random(7)

    def kill() -> None:
        while options.kill and not done.wait(dice.uniform(0.5, 1.5) * options.kill_every):
            place = dice.randrange(count)
            KILLED.append(cpu_of([psutil.Process(running[place].pid)]))
            running[place].kill()
            running[place].wait()
            running[place] = start(folder, *worker)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        yield running
    finally:
        done.set()
        killer.join()
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(folder: Path, sandbox: Sandbox, options: argparse.Namespace) -> int:
    client, watched = Client(load_settings()), Watched()
    sizes = [max(round(part * options.shards), 1) for part in SIZES]
    inputs = [make_requests(folder / f"in{place}.jsonl", size) for place, size in enumerate(sizes)]
    watcher = threading.Thread(target=watched.run, args=(sandbox,), daemon=True)
    with processes(folder, options) as running:
        while not client.store.queues.listening():
            time.sleep(0.1)
        watcher.start()
        began, before = time.time(), cpu(client, running)
        jobs = [client.submit(path, output=folder / f"out{place}") for place, path in enumerate(inputs)]
        ended = follow(jobs, began + 3 * options.shards / options.room * options.seconds + 300)
        watched.stop.set()
        watcher.join()
        spent = {name: seconds - before.get(name, 0.0) for name, seconds in cpu(client, running).items()}
        print(breakdown(client, jobs, watched))
    print("CPU seconds:", ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent.items()))
    return report(sandbox, watched, sizes, ended, began, options)


def cpu(client: Client, running: list[subprocess.Popen[bytes]]) -> dict[str, float]:
    """CPU seconds so far."""
    alive = [psutil.Process(process.pid) for process in running if process.poll() is None]
    redis = client.store.connection.call("info", "cpu")
    return {
        "workers and beat": cpu_of(alive) + sum(KILLED),
        "Redis": float(redis["used_cpu_sys"]) + float(redis["used_cpu_user"]),
        "sandbox and this script": time.process_time(),
    }


def follow(jobs: list[Job], until: float) -> list[float]:
    """When each job ended; a time that is infinite for one that did not."""
    ended = [float("inf")] * len(jobs)
    while max(ended) == float("inf") and time.time() < until:
        for place, job in enumerate(jobs):
            if ended[place] == float("inf") and job.refresh().state.ended:
                ended[place] = time.time()
        time.sleep(0.5)
    return ended


def report(
    sandbox: Sandbox,
    watched: Watched,
    sizes: list[int],
    ended: list[float],
    began: float,
    options: argparse.Namespace,
) -> int:
    first_refusal = next((at for at, _, refused in watched.samples if refused), None)
    known = first_refusal + options.seconds if first_refusal is not None else began
    duration = statistics.fmean(watched.durations())
    late = watched.samples[-1][2] - max((refused for at, _, refused in watched.samples if at <= known), default=0)
    ideal, took = sum(sizes) / options.room * duration, max(ended) - began
    # the last two batches of each place have too few behind them
    used = watched.used(options.room, max(ended) - 2.5 * duration)
    twice = len(sandbox.ledger.billed_twice())
    for size, at in zip(sizes, ended, strict=True):
        print(f"a job of {size:>4} shards: {at - began:.0f} s", flush=True)
    print(f"refused: {watched.samples[-1][2]}, of these {late} after the limit was known")
    print(f"room in use: {used:.0%}; rows paid twice: {twice}; batches: {len(sandbox.batches.all())}")
    print(f"a batch was at the provider for {duration:.2f} s")
    print(f"took {took:.0f} s, ideal {ideal:.0f} s: {took / ideal:.2f} times as long", flush=True)
    small = max(at for size, at in zip(sizes, ended, strict=True) if size <= options.room)
    fine = took <= MOST_TIMES * ideal and used >= LEAST_USED and not twice and not late
    return 0 if fine and small - began <= took / 2 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--room", type=int, default=10, help="shards that the queue holds")
    parser.add_argument("--seconds", type=float, default=20.0, help="that a batch runs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kill", type=int, default=0, help="so many workers, killed at random")
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds between two kills, about")
    parser.add_argument("--freeze-sweep", type=float, default=0.0, help="no beat, and workers sweep only after so long")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("BATCHPIPE_", "OPENAI_"))]:
        del os.environ[name]
    logging.getLogger("uvicorn.error").disabled = True
    tokens = ROWS * 106
    limits = {"gpt-4o-mini": round(tokens * (options.room + 0.6))}
    with (
        Sandbox(validating_seconds=0.1, rows_per_second=ROWS / options.seconds, enqueued_tokens=limits) as sandbox,
        tempfile.TemporaryDirectory(prefix="batchpipe-bench-", ignore_cleanup_errors=True) as name,
    ):
        os.environ |= {
            "OPENAI_API_KEY": "sandbox",
            "OPENAI_BASE_URL": sandbox.base_url,
            "BATCHPIPE_HOME": f"{name}/home",
            "BATCHPIPE_MAX_ROWS": str(ROWS),
            "BATCHPIPE_POLL_MIN_SECONDS": "0.5",
            "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",
            "BATCHPIPE_ACCOUNTS__DEFAULT__LOOKS_PER_SECOND": "50",
            # to a batch it is still more than a minute is to those of a provider
            "BATCHPIPE_LEASE_SECONDS": str(options.freeze_sweep or (options.seconds / 4 if options.kill else 60)),
        }
        return measure(Path(name), sandbox, options)


if __name__ == "__main__":
    sys.exit(main())
