"""What small jobs cost: 200 jobs of ten rows through one worker, beside a naive Celery chain of the same steps.

    python bench/turns.py [--jobs 200] [--rounds 1] [--commands]

Both have a worker of eight threads, the same Redis, the same Batch server (batches that take a second), a look a second
and no limit of looks. A worker is up before the first job is sent. Counted are the worker's CPU, and Redis' commands
from the first submit to the end of the last job, those that scripts call among them. Exits 1 if batchpipe is slower
than the chain, takes more than 1.5 times its CPU, or more than 150 commands a job.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import redis
from waiting import cpu_of, redis_cpu, redis_server, running

from batchpipe.client.client import Client
from batchpipe.config.loading import load_settings

BENCH = Path(__file__).parent
POLL_SECONDS = BATCH_SECONDS = 1.0
MOST_CPU, MOST_COMMANDS = 1.5, 150
#: How long all jobs may take.
PATIENCE_SECONDS = 300.0


@dataclass
class Cost:
    """Of one way, over all jobs."""

    seconds: float
    cpu: float  #: CPU seconds of the worker
    redis_cpu: float
    commands: float  #: that Redis has run, those that scripts call among them
    by_name: dict[str, float]


@contextmanager
def provider() -> Iterator[str]:
    command = [sys.executable, str(BENCH / "_short_batches.py"), str(BATCH_SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


def make_input(folder: Path) -> Path:
    path = folder / "requests.jsonl"
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    rows = [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def counts(client: redis.Redis) -> tuple[dict[str, float], float]:
    """Calls by command, scripts' calls included; Redis' CPU seconds."""
    stats = {name.removeprefix("cmdstat_"): float(row["calls"]) for name, row in client.info("commandstats").items()}
    return stats, redis_cpu(client)


def measured(
    client: redis.Redis, worker: psutil.Process, jobs: int, send: Callable[[int], object], ended: Callable[[], int]
) -> Cost:
    """Send so many jobs and wait until all have ended."""
    before, redis_before = counts(client)
    cpu_before, begun, looks = cpu_of([worker]), time.monotonic(), 0
    for number in range(jobs):
        send(number)
    while ended() < jobs:
        looks += 1
        if time.monotonic() - begun > PATIENCE_SECONDS:
            sys.exit(f"only {ended()} of {jobs} jobs ended within {PATIENCE_SECONDS:g} s")
        time.sleep(0.1)
    seconds, cpu = time.monotonic() - begun, cpu_of([worker]) - cpu_before
    after, redis_after = counts(client)
    by_name = {name: calls - before.get(name, 0.0) for name, calls in after.items() if calls != before.get(name)}
    return Cost(seconds, cpu, redis_after - redis_before, sum(by_name.values()) - looks, by_name)


def until(done: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not done():
        if time.monotonic() > end:
            sys.exit(f"after a minute not yet: {what}")
        time.sleep(0.1)


def ours(jobs: int, keep: Path | None) -> Cost:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bp-", ignore_cleanup_errors=True)))
        url, store = stack.enter_context(provider()), stack.enter_context(redis_server(folder))
        os.environ |= {
            "BATCHPIPE_REDIS_URL": f"unix://{folder}/redis.sock",
            "BATCHPIPE_BROKER_URL": f"redis+socket://{folder}/redis.sock",
            "BATCHPIPE_HOME": f"{folder}/home",
            "BATCHPIPE_POLL_MIN_SECONDS": str(POLL_SECONDS),
            "BATCHPIPE_POLL_MAX_SECONDS": str(POLL_SECONDS),
            "BATCHPIPE_POLLS_IN_FLIGHT": "100000",  # the same interval on both sides: no poll waits for a shared look
            "BATCHPIPE_ACCOUNTS__DEFAULT__LOOKS_PER_SECOND": "10000",
            "OPENAI_API_KEY": "bench",
            "OPENAI_BASE_URL": url,
        }
        client, source = Client(load_settings()), make_input(folder)
        log = keep or folder / "worker.log"
        worker = stack.enter_context(running(log, sys.executable, "-m", "batchpipe", "worker"))
        until(lambda: store.zcard("{batchpipe}:listening"), "the worker listens")
        time.sleep(2)
        ended = "{batchpipe}:jobs:succeeded"
        return measured(
            store,
            worker,
            jobs,
            lambda number: client.submit(source, output=folder / f"out-{number}"),
            lambda: int(store.zcard(ended)),
        )


def naive(jobs: int) -> Cost:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bp-", ignore_cleanup_errors=True)))
        url, store = stack.enter_context(provider()), stack.enter_context(redis_server(folder))
        os.environ |= {
            "NAIVE_BROKER": f"redis+socket://{folder}/redis.sock",
            "NAIVE_SOCKET": f"{folder}/redis.sock",
            "NAIVE_POLL": str(POLL_SECONDS),
            "OPENAI_API_KEY": "bench",
            "OPENAI_BASE_URL": url,
        }
        peer, source = importlib.import_module("_naive_chain"), make_input(folder)
        command = (sys.executable, "-m", "celery", "-A", "_naive_chain", "worker", "-P", "threads", "-c", "8")
        worker = stack.enter_context(running(folder / "naive.log", *command, "-l", "INFO"))
        until(lambda: peer.app.control.ping(timeout=1), "the naive worker answers")
        time.sleep(1)
        return measured(
            store,
            worker,
            jobs,
            lambda number: peer.send(str(source), f"{folder}/out-{number}"),
            lambda: int(store.get("naive:done") or 0),
        )


def report(jobs: int, found: dict[str, list[Cost]], by_name: bool) -> int:
    means: dict[str, list[float]] = {}
    print(f"{jobs} jobs of ten rows, one worker; batches of {BATCH_SECONDS:g} s, a look every {POLL_SECONDS:g} s")
    print(f"{'':<14}{'jobs/s':>10}{'CPU ms a job':>14}{'Redis CPU ms':>14}{'commands a job':>16}")
    for name, costs in found.items():
        rows = [(jobs / c.seconds, c.cpu / jobs * 1e3, c.redis_cpu / jobs * 1e3, c.commands / jobs) for c in costs]
        means[name] = mean = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"{name:<14}{mean[0]:>10.1f}{mean[1]:>14.1f}{mean[2]:>14.2f}{mean[3]:>16.1f}")
        if by_name:
            split = sorted(costs[-1].by_name.items(), key=lambda item: -item[1])
            print("    " + ", ".join(f"{one} {calls / jobs:.1f}" for one, calls in split if calls / jobs >= 0.3))
    if len(means) < 2:
        return 0
    ours, peer = means["batchpipe"], means["naive chain"]
    pace, cpu = ours[0] / peer[0], ours[1] / peer[1]
    print(f"{pace:.2f} x its jobs a second (at least 1), {cpu:.2f} x its CPU (at most {MOST_CPU})")
    print(f"{ours[3]:.0f} commands a job (at most {MOST_COMMANDS})")
    good = pace >= 1 and cpu <= MOST_CPU and ours[3] <= MOST_COMMANDS
    print("ok" if good else "MISSED")
    return int(not good)


def one(name: str, options: argparse.Namespace) -> Cost:
    """Each in a process of its own: a process has one current Celery app."""
    keep = ("--log", str(options.log)) if options.log else ()
    command = [sys.executable, __file__, "--jobs", str(options.jobs), *keep, "--one", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turn; their median counts")
    parser.add_argument("--commands", action="store_true", help="print which commands Redis has run")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--log", type=Path, help="keep the worker's log there")
    parser.add_argument("--one", choices=("ours", "naive"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        cost = ours(options.jobs, options.log) if options.one == "ours" else naive(options.jobs)
        print(json.dumps(asdict(cost)))
        return 0
    found: dict[str, list[Cost]] = {}
    for _ in range(options.rounds):
        if not options.no_peer:
            found.setdefault("naive chain", []).append(one("naive", options))
        found.setdefault("batchpipe", []).append(one("ours", options))
    return report(options.jobs, found, options.commands)


if __name__ == "__main__":
    sys.exit(main())
