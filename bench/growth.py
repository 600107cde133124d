"""What grows: Redis, files and CPU for jobs of 1 to 100,000 shards, and over a month of jobs; how long scripts block.

    python bench/growth.py [--shards 1,100,10000,100000] [--days 30]

On a Redis of its own. The month has a simulated clock; records of ended jobs live for a second there, which stands for
the days of JOB_TTL_DAYS. Exits 1 if a script took more than 50 ms, or if the month did not stay flat.
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
from pathlib import Path
from typing import Any

import redis

from batchpipe.jobs import JOB, JobRecord, Move, ShardRecord, Stage, State, new_job_id
from batchpipe.private_redis import acquire
from batchpipe.store import Lease, Store
from batchpipe.store.scripts import source
from batchpipe.sweep import sweep
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.views import SHOWN, json_of_job

MOST_SCRIPT_SECONDS = 0.05
#: What whoever cancels wakes himself (see ``client``).
WOKEN = 20
#: The last day of a month may use so much more than its third.
MOST_GROWTH = 1.2
SCRIPTS = Path(__file__).parent.parent / "batchpipe" / "store" / "scripts"


def shards_of(job_id: str, count: int) -> Iterator[ShardRecord]:
    for index in range(count):
        name = f"shards/{index:05d}-{'0' * 32}.jsonl"
        ids = [f"{index:08d}-0000-0000-0000-{link:012d}" for link in range(4)]
        yield ShardRecord(job=job_id, index=index, epoch=1, rows=1, bytes=200, file=name, model="m", task_ids=ids)


def timed(seconds: dict[str, float], name: str, action: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    answer = action()
    seconds[name] = round(time.perf_counter() - begun, 4)
    return answer


def claim(store: Store, job_id: str, index: int, epoch: int, stages: list[str], enter: str = "") -> Lease:
    found = store.claim(job_id, index, epoch, stages, deadline=9_999, enter=enter)
    assert isinstance(found, Lease), found
    return found


def one_job(store: Store, count: int) -> dict[str, Any]:
    """A job of so many shards from its beginning to its end: bytes in Redis, and seconds of what people wait for."""
    before, took = used(store), dict[str, float]()
    job = JobRecord(id=new_job_id(), epoch=1, task_ids=["p"], output="/o", owns=["/o"])
    store.submit(job)
    beginning = [State.PENDING.value, State.PREPARING.value]
    lease = claim(store, job.id, JOB, 1, beginning, State.PREPARING.value)
    timed(took, "plan", lambda: store.plan(lease, {"round": 1, "total": count}, shards_of(job.id, count), ["m"]))
    running = store.get_job(job.id)
    turn = claim(store, job.id, 0, 1, [Stage.PLANNED.value])
    store.advance(turn, Move(stage=Stage.UPLOADED), tries="reset", merge_ids=["m"])
    timed(took, "census", store.census)
    store.survey()
    timed(took, "status", lambda: sum(1 for _ in store.iter_shards(running, fields=SHOWN, bad="show")))
    read = lambda: store.iter_shards(running, fields=SHOWN, bad="show")  # noqa: E731
    timed(took, "json", lambda: sum(len(part) for part in json_of_job(running, read)))

    def cancel() -> None:
        store.cancel(job.id, waking=WOKEN)
        for index in (JOB, *range(min(count, WOKEN))):
            store.raise_epoch(job.id, index, ["a", "b", "c", "d"])

    timed(took, "cancel", cancel)
    while store.take_wakes(200) is not None:
        pass
    full = used(store)
    end(store, job.id, took)
    again = running.evolve(id=new_job_id(), owns=[], created_at=store.now(), stage=State.RUNNING.value)
    timed(took, "restore", lambda: store.restore(again, shards_of(again.id, count)))
    end(store, again.id, {})
    time.sleep(2.5)  # the records of both expire
    wait_for_expiry(store)
    return {"bytes": full - before, "left": used(store) - before, **took}


def end(store: Store, job_id: str, took: dict[str, float]) -> None:
    """As if all shards had come home: their own turns are none of this table's."""
    key = f"{store.prefix}job:{job_id}"
    store.client.hset(key, mapping={"stage": "finalizing", "epoch": 99})
    pipe = store.client.pipeline(transaction=False)
    for index in range(int(store.client.hget(key, "shards") or 0)):
        pipe.zrem(f"{store.prefix}due", f"{job_id}/{index}")
    pipe.execute()
    lease = claim(store, job_id, JOB, 99, ["finalizing"])
    store.finish(lease, State.CANCELLED, {"ok": 0})
    timed(took, "told", lambda: store.told(lease))


def wait_for_expiry(store: Store) -> None:
    pattern = f"{store.prefix}shard:*".replace("{", "\\{").replace("}", "\\}")
    for _ in range(600):
        if next(iter(store.client.scan_iter(pattern, count=10_000)), None) is None:
            return
        time.sleep(0.1)


def used(store: Store) -> int:
    facts: Any = store.client.info("memory")
    return int(facts["used_memory_dataset"])


def slowest(client: redis.Redis) -> dict[str, float]:
    """Milliseconds of the slowest run of each script that Redis has noted."""
    names = {hashlib.sha1(source(path.stem).encode()).hexdigest(): path.stem for path in SCRIPTS.glob("*.lua")}
    found: dict[str, float] = {}
    for entry in client.slowlog_get(100_000):
        command = entry["command"]
        words = (command.decode() if isinstance(command, bytes) else str(command)).split()
        name = names.get(words[1], "") if words[0] == "EVALSHA" else ""
        if name:
            found[name] = max(found.get(name, 0.0), entry["duration"] / 1000)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


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
            sweep(pump.job_turns, listing=False)
            pump.waiting = [one for one in pump.waiting if one.message.job not in dead]
        time.sleep(1.2)  # records of ended jobs expire
        sweep(pump.job_turns, listing=False)
        keys = sum(1 for _ in store.client.scan_iter("*", count=10_000))
        size = sum(store.client.memory_usage(key, samples=0) or 0 for key in store.client.scan_iter("*", count=10_000))
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
    parser.add_argument("--shards", default="1,100,10000,100000")
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    os.environ["BATCHPIPE_HOME"] = ""
    with tempfile.TemporaryDirectory() as folder:
        handle = acquire(Path(folder) / "redis-home", environment={})
        url = handle.server.url
        client = redis.Redis.from_url(url)
        client.config_set("slowlog-log-slower-than", 1_000)
        client.config_set("slowlog-max-len", 100_000)
        sizes = {}
        for count in map(int, options.shards.split(",")):
            store = Store.connect(url, prefix="{growth}:", ttl_seconds=2, lease_seconds=600)
            sizes[count] = one_job(store, count)
            print(count, json.dumps(sizes[count]), flush=True)
        scripts = slowest(client)
        print("slowest run of each script, ms:", json.dumps(scripts), flush=True)
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
