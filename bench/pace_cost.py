"""What turnarounds cost: bytes in Redis for a model and for an account of 200 models, and time in Redis' scripts.

    python bench/pace_cost.py [--batches 400]

On a Redis of its own. The time of the script that records the end of a batch is taken twice in the same run: for
batches that count, and for those that failed and do not. A history is read beside 10,000 in flight. Exits 1 if a
model takes more than 24 KB, if counting makes the script more than three times as long, or if reading takes over 3 ms.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

from batchpipe.local_redis import acquire
from batchpipe.model.pace import BINS
from batchpipe.store import Store

MOST_BYTES, MOST_RATIO, MOST_READ_MS = 24_576, 3.0, 3.0
ACCOUNT, IN_FLIGHT, DAY = "a", 10_000, 86_400


def shards_in_flight(client: Any, prefix: str, first: int, count: int, model: str) -> list[str]:
    """Records as they are once a batch is made; as much of them as the scripts read."""
    now, members = time.time(), []
    pipe = client.pipeline(transaction=False)
    for index in range(first, first + count):
        member = f"job_x/{index}"
        fields = {"stage": "created", "job": "job_x", "index": index, "batch_id": f"batch_{index}", "model": model}
        pipe.hset(f"{prefix}shard:job_x:{index}", mapping={**fields, "made_at": now - 2_000, "created_at": now - 2_000})
        pipe.zadd(f"{prefix}inflight:{ACCOUNT}", {member: now - 2_000 + index / 100})
        members.append(member)
    pipe.hset(f"{prefix}job:job_x", mapping={"id": "job_x", "account": ACCOUNT, "stage": "running"})
    pipe.execute()
    return members


def microseconds(client: Any, action: Any, count: int) -> float:
    """Time in Redis of the scripts that ``action`` runs, of each."""
    client.config_resetstat()
    action()
    stats = client.info("commandstats")
    return float(sum(stats[name]["usec"] for name in stats if name.startswith("cmdstat_eval")) / count)


def ends(store: Store, first: int, count: int, status: str, dice: random.Random) -> None:
    for index in range(first, first + count):
        made = time.time() - 2_000
        took = 420 * math.exp(dice.gauss(0, 1.676))
        times = {"in_progress_at": made + took / 5, "finished_at": made + took}
        shard = store.shards.at([("job_x", index)])[0]
        assert shard is not None
        assert store.shards.record_batch_status(shard, f"batch_{index}", {"status": status, **times})


def fill(client: Any, prefix: str, model: str, bins: int) -> None:
    """A sketch as full as it gets: eight days, many bins, large counts."""
    today = int(time.time() // DAY)
    day = "{" + ",".join(f'"{(7 * b) % BINS}":{100_000 + b}' for b in range(bins)) + "}"
    fields = {f"{today - back}:{kind}": day for back in range(8) for kind in ("took", "queued")}
    client.hset(f"{prefix}pace:{ACCOUNT}:{model}", mapping=fields)
    client.zadd(f"{prefix}paces:{ACCOUNT}", {model: time.time()})


def main() -> int:
    parser = argparse.ArgumentParser(description="Bytes and script time of turnarounds in Redis.")
    parser.add_argument("--batches", type=int, default=400)
    count = parser.parse_args().batches
    with tempfile.TemporaryDirectory() as folder:
        handle = acquire(Path(folder) / "home", environment={})
        client = redis.Redis.from_url(handle.server.url)
        store, dice = Store.connect(handle.server.url, prefix="{pace}:"), random.Random(1)
        prefix = store.connection.prefix
        shards_in_flight(client, prefix, 0, 2 * count, "m")
        failed = microseconds(client, lambda: ends(store, 0, count, "failed", dice), count)
        counted = microseconds(client, lambda: ends(store, count, count, "completed", dice), count)
        real = client.memory_usage(f"{prefix}pace:{ACCOUNT}:m", samples=0) or 0
        fill(client, prefix, "usual", 30)
        fill(client, prefix, "full", BINS)
        usual, full = (
            client.memory_usage(f"{prefix}pace:{ACCOUNT}:{name}", samples=0) or 0 for name in ("usual", "full")
        )
        before = client.info("memory")["used_memory"]
        for number in range(200):
            fill(client, prefix, f"model-{number}", 30)
        account = client.info("memory")["used_memory"] - before
        shards_in_flight(client, prefix, 2 * count, IN_FLIGHT, "m")
        read = microseconds(client, lambda: [store.paces.read(ACCOUNT, "m") for _ in range(50)], 50) / 1_000
        begun = time.process_time()
        for _ in range(50):
            store.paces.read(ACCOUNT, "m").took.curve(100.0).when(0.9)
        own = (time.process_time() - begun) / 50 * 1_000
        handle.close()
    print(f"a model's sketch: {real:,} bytes on its first day, {usual:,} after eight, {full:,} at most")
    print(f"200 models of an account: {account / 1e6:.2f} MB")
    print(f"script that records an end: {failed:.0f} us, with counting {counted:.0f} us ({counted / failed:.2f} times)")
    print(f"reading a history beside {IN_FLIGHT:,} in flight: {read:.2f} ms in Redis, {own:.2f} ms of own CPU")
    return int(full > MOST_BYTES or counted > MOST_RATIO * failed or read > MOST_READ_MS)


if __name__ == "__main__":
    sys.exit(main())
