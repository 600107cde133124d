"""`batchpipe list`, jobs found by the beginning of their id, and scrapes of the metrics, with 100 to 100,000 jobs.

    python bench/list_jobs.py [--most 100000]

On a Redis of its own. The peer is the same with 100 jobs, in the same run. Exits 1 if, with the most jobs, one of
them takes more than 1.5 times as long and 5 ms more, or if a command of them keeps Redis busy for over 5 ms. A scrape
is the text that Prometheus gets, with nothing kept from the one before; no shards are open, for these it counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import redis
from prometheus_client import CollectorRegistry, generate_latest

from batchpipe.client.client import Client
from batchpipe.client.measures import Meter
from batchpipe.config.settings import Settings
from batchpipe.local_redis import acquire
from batchpipe.model.records import JobRecord, State, new_job_id
from batchpipe.monitoring.prometheus import JobCollector
from batchpipe.store.records import encode_record

STATES = (State.RUNNING, State.SUCCEEDED, State.PARTIAL, State.FAILED)
RUNS = 15
MOST_TIMES, SLACK_SECONDS, MOST_MICROSECONDS = 1.5, 0.005, 5_000


def fill(client: redis.Redis, prefix: str, first: int, count: int) -> None:
    """Records of jobs as they are after a while; written at once, without the scripts."""
    began = time.time() - 1_000_000
    pipe = client.pipeline(transaction=False)
    for number in range(first, count):
        state = STATES[number % len(STATES)]
        job_id = new_job_id()
        job = JobRecord(
            id=job_id, name=f"job {number}", stage=state, input=f"/data/{number}.jsonl", output=f"/out/{number}",
            total=1_000, ok=900, failed=100, missing=0, shards=2, round=1, answered=1_000, reasons={"400 bad": 100},
            created_at=began + number, closed=state is not State.RUNNING,
        )  # fmt: skip
        flat = encode_record(job)
        pipe.hset(f"{prefix}job:{job_id}", mapping=dict(zip(flat[::2], flat[1::2], strict=True)))
        for name in ("jobs", f"jobs:{state.value}"):
            pipe.zadd(prefix + name, {job_id: began + number})
        pipe.zadd(f"{prefix}job_ids", {job_id: 0})
        if number % 1_000 == 999:
            pipe.execute()
    pipe.execute()


def scrape(client: Client) -> None:
    """The text of the metrics, all counted anew."""
    registry = CollectorRegistry()
    registry.register(JobCollector(Meter(lambda: client.store).read))
    assert b"batchpipe_up 1.0" in generate_latest(registry)


def quickest(call: Callable[[], object]) -> float:
    """Seconds; the quickest of some runs, for other work on the machine only adds to it."""
    taken = []
    for _ in range(RUNS):
        before = time.perf_counter()
        call()
        taken.append(time.perf_counter() - before)
    return min(taken)


def command(url: str, home: str, *words: str) -> float:
    """CPU seconds of a command, start of the interpreter included."""
    env = {"PATH": "/usr/bin:/bin", "BATCHPIPE_REDIS_URL": url, "BATCHPIPE_HOME": home}
    code = (
        "import resource as r, subprocess, sys; command = [sys.executable, '-m', 'batchpipe', *sys.argv[1:]]; "
        "subprocess.run(command, check=True, stdout=subprocess.DEVNULL); "
        "used = r.getrusage(r.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def held(client: redis.Redis) -> float:
    """Microseconds that a call of the costliest command took in Redis, on average, since it was last asked."""
    stats = client.info("commandstats")
    client.config_resetstat()
    return max(float(one["usec_per_call"]) for name, one in stats.items() if not name.startswith("cmdstat_config"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=100_000)
    most = parser.parse_args().most
    with tempfile.TemporaryDirectory() as folder:
        handle = acquire(Path(folder) / "home", environment={})
        raw = redis.Redis.from_url(handle.server.url)
        client = Client(Settings(_env_file=None, redis_url=handle.server.url, home=Path(folder)))
        prefix, found, written = client.settings.prefix, [], 0
        for count in [size for size in (100, 1_000, 10_000, 100_000) if size <= most]:
            fill(raw, prefix, written, count)
            written = count
            newest = client.list_jobs(limit=1)[0].id
            raw.config_resetstat()
            took = {
                "list": quickest(lambda: client.show(client.list_jobs(limit=20))),
                "list --state": quickest(lambda: client.show(client.list_jobs(state="partial", limit=20))),
                "last": quickest(lambda: client.find_job("last")),
                "begin": quickest(partial(client.find_job, newest[:-1])),
                "scrape": quickest(partial(scrape, client)),
            }
            redis_held, cpu = held(raw), command(handle.server.url, folder, "list")
            shown = ", ".join(f"{name} {seconds * 1_000:.1f} ms" for name, seconds in took.items())
            print(f"{count:>7,} jobs: {shown}; a command {redis_held / 1_000:.2f} ms in Redis; `list` {cpu:.2f} CPU-s")
            found.append((took, redis_held))
    first, last = found[0][0], found[-1][0]
    ratios = {name: last[name] / first[name] for name in first}
    print("times as long as with 100: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    slow = [name for name in first if last[name] > MOST_TIMES * first[name] + SLACK_SECONDS]
    return int(bool(slow) or found[-1][1] > MOST_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
