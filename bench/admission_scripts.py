"""How long Redis is busy with each script of admission while 10, 1,000 and 100,000 shards wait, beside a plain EVAL.

python bench/admission_scripts.py [--calls N]

Times are Redis' own (commandstats), so a busy machine makes them longer. Shards wait in two forms: all of one job, and
each of a job of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from batchpipe.model.records import JobRecord, Move, ShardRecord, Stage, State, new_job_id
from batchpipe.store import Connection, ShardLease, Store
from tests.redis_server import close_fast_redis, new_redis

SIZES = (10, 1_000, 100_000)
NEEDS: Any = {"tokens": 1_000, "batches": 1, "creations": 1, "uploads": 1}
FREE: Any = {"tokens": 10_000}
#: Milliseconds that no script may block Redis for.
MOST = 5.0


def fill(client: redis.Redis, store: Store, waiting: int, jobs: int) -> list[str]:
    """So many waiting shards of so many jobs, as ``join`` of admission.lua writes them."""
    prefix, pipe, ids = store.connection.prefix, client.pipeline(transaction=False), []
    now = store.now()
    for number in range(jobs):
        ids.append(job := f"job_{number:07}")
        pipe.hset(f"{prefix}job:{job}", mapping={"stage": "running", "account": "default", "id": job})
        pipe.zadd(f"{prefix}line:default:m", {job: 0.0})
        pipe.zadd(f"{prefix}raise:default:m", {job: now + 3600})
        for index in range(waiting // jobs):
            record: Any = {
                "stage": "planned",
                "job": job,
                "index": index,
                "waits_since": "1",
                "model": "m",
                "bytes": "4000",
            }
            needs = '{"tokens":1000,"batches":1,"creations":1,"uploads":1}'
            pipe.hset(f"{prefix}shard:{job}:{index}", mapping=record | {"needs": needs})
            pipe.zadd(f"{prefix}shards:default:m:{job}", {str(index): index})
            if len(pipe) > 5_000:
                pipe.execute()
    pipe.hset(f"{prefix}fair:default:m", mapping={"now": "0", "waiting": waiting})
    pipe.zadd(f"{prefix}lines:default", {"m": 0})
    pipe.zadd(f"{prefix}rooms:default", {"tokens:m": now, "batches": now})
    pipe.hset(f"{prefix}room:default:tokens:m", mapping={"limit": FREE["tokens"]})
    pipe.execute()
    return ids


def timed(client: redis.Redis, calls: Iterable[Callable[[], Any]]) -> float:
    """Milliseconds that Redis was busy with EVALSHA: the best of these calls, for others use the machine, too."""
    times = []
    for call in calls:
        client.config_resetstat()
        call()
        stats: Any = client.info("commandstats")
        found = stats.get("cmdstat_evalsha", {"usec": 0, "calls": 1})
        times.append(float(found["usec"]) / float(found["calls"]) / 1_000)
    return min(times)


def one_shard(store: Store) -> ShardLease:
    """A claimed shard of a new job."""
    job = JobRecord(id=new_job_id(), output="/o", epoch=1, task_ids=["p"])
    store.jobs.submit(job)
    lease = store.leases.claim_job(job.id, 1, [State.PENDING.value], deadline=300, enter=State.PREPARING.value)
    shard = ShardRecord(job=job.id, index=0, epoch=1, rows=1, bytes=4_000, file="f", model="m", task_ids=["a"])
    store.leases.plan(lease, {"round": 1, "total": 1}, [shard], ["m"])  # type: ignore[arg-type]
    claimed = store.leases.claim_shard(job.id, 0, 1, ["planned"], deadline=300)
    assert isinstance(claimed, ShardLease)
    return claimed


def measure(waiting: int, jobs: int, calls: int) -> dict[str, float]:
    client = new_redis()
    store = Store(Connection(client, prefix="{b}:"))
    ids = fill(client, store, waiting, jobs)
    admission, found = store.admission, dict[str, float]()
    leases = [one_shard(store) for _ in range(calls)]
    admission.grant("default", 1)  # loads the script
    found["grant, full"] = 0.0
    admission.grant("default", 100)
    found["grant, full"] = timed(client, [lambda: admission.grant("default", 20)] * calls)
    admission.admit(leases[0], NEEDS, FREE)
    found["admit, full"] = timed(client, [partial(admission.admit, lease, NEEDS, FREE) for lease in leases[1:]])
    places = [(ids[-1], waiting // jobs - 1 - i) for i in range(min(100, waiting // jobs))]
    admission.waiting_of(places)
    found["100 places" if len(places) == 100 else f"{len(places)} places"] = timed(
        client, [lambda: admission.waiting_of(places)] * calls
    )
    admission.rooms("default")
    found["read_rooms"] = timed(client, [lambda: admission.rooms("default")] * calls)
    client.hset("{b}:room:default:tokens:m", "limit", 10**9)
    if waiting > 800:
        found["100 grants"] = timed(client, [lambda: admission.grant("default", 100)] * 7)
    admission.rebuild("default")
    found["check_holds"] = timed(client, [lambda: admission.rebuild("default")] * 5)
    move = Move(stage=Stage.COLLECTED, changes={})
    admission.grant("default", 100)
    client.hset("{b}:room:default:tokens:m", "limit", FREE["tokens"])
    store.leases.advance(leases[0], move, tries="reset", merge_ids=["m"])
    found["advance to collected"] = timed(
        client, [partial(store.leases.advance, lease, move, tries="reset", merge_ids=["m"]) for lease in leases[1:]]
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=50)
    calls = parser.parse_args().calls
    client = new_redis()
    plain = client.register_script("return {}")
    plain()
    floor = timed(client, [plain] * calls)
    store = Store(Connection(client, prefix="{b}:"))
    store.now()
    clock = timed(client, [store.now] * calls)
    print(f"an empty script {floor:.3f} ms; read_clock {clock:.3f} ms")
    worst = 0.0
    for waiting in SIZES:
        for jobs in (1, waiting):
            found = measure(waiting, jobs, calls)
            worst = max(worst, *found.values())
            said = ", ".join(f"{name} {ms:.2f}" for name, ms in found.items())
            print(f"{waiting:7,} waiting, {jobs:7,} jobs, ms: {said}")
    print(f"the longest {worst:.2f} ms: {worst / MOST:.2f} of the {MOST:.0f} ms that a script may take")
    close_fast_redis()
    return 0 if worst <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
