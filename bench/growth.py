"""What grows: Redis, files and CPU for jobs of 1 to 100,000 shards, and over a month of jobs; how long scripts block.

    python bench/growth.py [--shards 1,10,1000,10000,100000] [--days 30]

On a Redis of its own, which goes before others on this machine where that is allowed: what it waits for them is no time
of a script. Each time is given as seconds that passed, and seconds of CPU of the process that asks. The month has a
simulated clock; records of ended jobs live for a second there, which stands for the days of JOB_TTL_DAYS. Exits 1 if a
script took more than 50 ms, or if the month did not stay flat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, cast

import redis
from click.testing import CliRunner

from batchpipe.cli import cli
from batchpipe.cli.doctor import _jobs_and_workers
from batchpipe.client.client import Client
from batchpipe.config.settings import Settings
from batchpipe.local_redis import acquire
from batchpipe.model.records import JOB, JobRecord, Move, Problem, ShardRecord, Stage, State, new_job_id
from batchpipe.model.views import SHOWN, json_of_job
from batchpipe.pipeline.job_runner import JobRunner
from batchpipe.pipeline.republish_many import PUBLISHED_AT_ONCE, republish_first, resume_account
from batchpipe.pipeline.sweep import sweep
from batchpipe.store import Lease, Store
from batchpipe.store.scripts import source
from batchpipe.testing import FakeOpenAI, Pump

MOST_SCRIPT_SECONDS = 0.05
#: The last day of a month may use so much more than its third.
MOST_GROWTH = 1.2
SCRIPTS = Path(__file__).parent.parent / "batchpipe" / "store" / "scripts"


def shards_of(job_id: str, count: int) -> Iterator[ShardRecord]:
    for index in range(count):
        name = f"shards/{index:05d}-{'0' * 32}.jsonl"
        ids = [f"{index:08d}-0000-0000-0000-{link:012d}" for link in range(4)]
        yield ShardRecord(job=job_id, index=index, epoch=1, rows=1, bytes=200, file=name, model="m", task_ids=ids)


#: What each took: seconds, and seconds of this process's CPU.
Took = dict[str, tuple[float, float]]


def timed(took: Took, name: str, action: Callable[[], Any]) -> Any:
    begun, cpu = time.perf_counter(), time.process_time()
    answer = action()
    took[name] = (round(time.perf_counter() - begun, 4), round(time.process_time() - cpu, 4))
    return answer


def claim(store: Store, job_id: str, index: int, epoch: int, stages: list[str], enter: str = "") -> Any:
    if index == JOB:
        found: Any = store.leases.claim_job(job_id, epoch, stages, deadline=9_999, enter=enter)
    else:
        found = store.leases.claim_shard(job_id, index, epoch, stages, deadline=9_999)
    assert isinstance(found, Lease), found
    return found


class Bench:
    """A Redis, and what works on it."""

    def __init__(self, url: str, home: Path) -> None:
        os.environ.update(BATCHPIPE_REDIS_URL=url, BATCHPIPE_PREFIX="{growth}:", BATCHPIPE_HOME=str(home))
        self.store = Store.connect(url, prefix="{growth}:", ttl_seconds=2, lease_seconds=600)
        self.ahead = 0.0  #: the simulated time; it never goes back
        self.store.connection.skew = lambda: self.ahead
        settings = Settings(_env_file=None, redis_url=url, prefix="{growth}:", home=home)
        self.client = Client(settings)
        api = cast(Any, lambda name: FakeOpenAI())
        self.runner = JobRunner(settings, self.store, api, lambda message: None, lambda job: None)

    def one_job(self, count: int) -> dict[str, Any]:
        """A job of so many shards from its beginning to its end, and once more: bytes in Redis, and what takes time."""
        store, before, took = self.store, used(self.store), Took()
        cpu = redis_cpu(store)
        job = JobRecord(id=new_job_id(), epoch=1, task_ids=["p"], output="/o", owns=["/o"])
        store.jobs.submit(job)
        beginning = [State.PENDING.value, State.PREPARING.value]
        lease = claim(store, job.id, JOB, 1, beginning, State.PREPARING.value)
        timed(
            took,
            "plan",
            lambda: store.leases.plan(lease, {"round": 1, "total": count}, shards_of(job.id, count), ["m"]),
        )
        running = store.jobs.get(job.id)
        full = used(store)
        timed(took, "settle", lambda: self.settle(job.id))
        timed(took, "count_open_shards", store.counters.count_open_shards)
        timed(took, "stats", store.counters.stats)
        timed(took, "status", lambda: self.command("status", job.id))
        timed(took, "list", lambda: self.command("list"))
        timed(took, "doctor", lambda: list(_jobs_and_workers(self.client)))
        read = lambda: store.shards.of_job(running, fields=SHOWN, bad="show")  # noqa: E731
        timed(took, "json", lambda: sum(len(part) for part in json_of_job(running, read)))
        timed(took, "page", lambda: self.client.get_job(job.id).to_page())
        store.accounts.pause("default", 600, Problem(code="insufficient_quota", message="no money"))
        timed(took, "resume", lambda: resume_account(self.runner, "default"))
        self.ahead += 7_200.0  # all is overdue
        timed(took, "sweep", lambda: sweep(self.runner, listing=False))
        timed(took, "cancel", lambda: self.cancel(job.id))
        while store.due.take_to_republish(200) is not None:
            pass
        self.end(job.id, took, ttl=3_600)
        self.give_up(job.id, count)
        timed(took, "land", lambda: store.jobs.land(job.id, range(count)))
        self.end(job.id, Took())
        again = running.evolve(id=new_job_id(), owns=[], created_at=store.now(), stage=State.RUNNING.value)
        timed(took, "restore", lambda: store.jobs.restore(again, shards_of(again.id, count)))
        self.end(again.id, Took())
        scripts = slowest(store.connection.client)
        time.sleep(2.5)  # the records of both expire
        wait_for_expiry(store)
        sizes = {"bytes": full - before, "left": used(store) - before, "redis_cpu": round(redis_cpu(store) - cpu, 2)}
        return {**sizes, "keys_left": store.connection.client.dbsize(), **took, "scripts": scripts}

    def settle(self, job_id: str) -> None:
        """The first shard gets its batch."""
        store = self.store
        store.leases.advance(
            claim(store, job_id, 0, 1, [Stage.PLANNED]), Move(stage=Stage.UPLOADED), tries="reset", merge_ids=[]
        )
        turn = claim(store, job_id, 0, 1, [Stage.UPLOADED])
        assert turn.shard is not None
        store.leases.record_intent(turn)
        store.shards.settle(turn.shard, "batch_0", token=turn.token, after=0.0, changes={"status": "validating"})

    def command(self, *words: str) -> None:
        answer = CliRunner().invoke(cli, words)
        assert answer.exit_code == 0, answer.output

    def cancel(self, job_id: str) -> None:
        _, shards = self.store.jobs.cancel(job_id, published=PUBLISHED_AT_ONCE)
        republish_first(self.runner, job_id, shards, "always")

    def end(self, job_id: str, took: Took, ttl: int = 2) -> None:
        """As if all shards had come home: their own turns are none of this table's."""
        store, key = self.store, f"{self.store.connection.prefix}job:{job_id}"
        epoch = int(store.connection.client.hget(key, "epoch") or 0) + 1
        store.connection.client.hset(key, mapping={"stage": "finalizing", "epoch": epoch})
        store.connection.client.hdel(key, "token", "lease_until")
        pipe = store.connection.client.pipeline(transaction=False)
        for index in range(int(store.connection.client.hget(key, "shards") or 0)):
            pipe.zrem(f"{store.connection.prefix}due", f"{job_id}/{index}")
        pipe.execute()
        lease = claim(store, job_id, JOB, epoch, ["finalizing"])
        store.leases.finish(lease, State.CANCELLED, {"ok": 0})
        store.connection.ttl_seconds = ttl
        timed(took, "close_job", lambda: store.leases.close_job(lease))

    def give_up(self, job_id: str, count: int) -> None:
        """As if the batch of each shard had been given up."""
        pipe = self.store.connection.client.pipeline(transaction=False)
        for index in range(count):
            fields = {"stage": "collected", "batch_id": f"batch_{index}", "error": "{}"}
            pipe.hset(f"{self.store.connection.prefix}shard:{job_id}:{index}", mapping=cast(Any, fields))
        pipe.execute()


def redis_cpu(store: Store) -> float:
    """Seconds of CPU that Redis has used so far."""
    facts: Any = store.connection.client.info("cpu")
    return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])


def wait_for_expiry(store: Store) -> None:
    pattern = f"{store.connection.prefix}shard:*".replace("{", "\\{").replace("}", "\\}")
    for _ in range(600):
        if next(iter(store.connection.client.scan_iter(pattern, count=10_000)), None) is None:
            return
        time.sleep(0.1)


def used(store: Store) -> int:
    facts: Any = store.connection.client.info("memory")
    return int(facts["used_memory_dataset"])


def slowest(client: Any) -> dict[str, tuple[float, float, int]]:
    """Of each script, since it was asked last: milliseconds of its slowest run, of the middle one, and how many there
    were, of the runs of more than half a millisecond, which are all that Redis has noted.
    """
    names = {hashlib.sha1(source(path.stem).encode()).hexdigest(): path.stem for path in SCRIPTS.glob("*.lua")}
    found: dict[str, list[float]] = {}
    for entry in client.slowlog_get(100_000):
        command = entry["command"]
        words = (command.decode() if isinstance(command, bytes) else str(command)).split()
        if words[0] == "EVALSHA" and words[1] in names:
            found.setdefault(names[words[1]], []).append(entry["duration"] / 1000)
    client.slowlog_reset()
    told = {name: (max(runs), round(median(runs), 2), len(runs)) for name, runs in found.items()}
    return dict(sorted(told.items(), key=lambda pair: -pair[1][0]))


def go_first(client: redis.Redis) -> None:
    """Let this Redis run before other processes."""
    facts: Any = client.info("server")
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(int(facts["process_id"]), os.SCHED_FIFO, os.sched_param(10))


def month(folder: Path, url: str, days: int) -> list[dict[str, float]]:
    """Each day twenty jobs that end and one for a queue without a worker, and sweeps every half an hour."""
    store = Store.connect(url, prefix="{month}:", ttl_seconds=1)
    pump, dead, rows = Pump(folder, api=FakeOpenAI(autofinish=True), store=store), set[str](), []
    for day in range(days):
        begun = time.process_time()
        if day < 3:  # they wait for a worker all month
            dead.add(pump.submit([request(0)], queue="dead"))
        for number in range(20):
            pump.submit([request(at) for at in range(1 + number % 5)], max_rows=1)
        pump.waiting = [one for one in pump.waiting if one.message.job not in dead]
        pump.run_until_idle(3_600.0, sweeping=False)
        for _ in range(48):
            pump.advance(1_800)
            sweep(pump.job_runner, listing=False)
            pump.waiting = [one for one in pump.waiting if one.message.job not in dead]
        time.sleep(1.2)  # records of ended jobs expire
        sweep(pump.job_runner, listing=False)
        keys = sum(1 for _ in store.connection.client.scan_iter("*", count=10_000))
        size = sum(
            store.connection.client.memory_usage(key, samples=0) or 0
            for key in store.connection.client.scan_iter("*", count=10_000)
        )
        home = sum(1 for path in (folder / "home").rglob("*") if path.is_file())
        working = sum(1 for path in folder.rglob("shards/*") if path.is_file())
        cpu = round(time.process_time() - begun, 2)
        rows.append({"day": day + 1, "keys": keys, "bytes": size, "home": home, "working": working, "cpu": cpu})
    return rows


def request(number: int) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Tell me about it"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", default="1,10,1000,10000,100000")
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    os.environ["BATCHPIPE_HOME"] = ""
    with tempfile.TemporaryDirectory() as folder:
        handle = acquire(Path(folder) / "redis-home", environment={})
        url = handle.server.url
        client = redis.Redis.from_url(url)
        client.config_set("slowlog-log-slower-than", 500)
        client.config_set("slowlog-max-len", 20_000)
        go_first(client)
        bench, scripts = Bench(url, Path(folder) / "home"), dict[str, float]()
        for count in map(int, options.shards.split(",")):
            found = bench.one_job(count)
            ran = found.pop("scripts")
            print(count, json.dumps(found), flush=True)
            print("  scripts, ms: slowest, middle, runs:", json.dumps(ran), flush=True)
            scripts |= {name: max(runs[0], scripts.get(name, 0.0)) for name, runs in ran.items()}
        client.flushdb()
        days = month(Path(folder), url, options.days)
        for row in days:
            if row["day"] in (1, 2, 3, 7, 14, 21, options.days):
                print(json.dumps(row))
        handle.close()
    third, last = days[min(3, len(days) - 1)], days[-1]
    flat = all(last[name] <= MOST_GROWTH * third[name] + 2 for name in ("keys", "bytes", "home", "working"))
    return int(not flat or max(scripts.values(), default=0.0) > 1_000 * MOST_SCRIPT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
