"""What a job, its shards and its event log take in Redis.

    python bench/redis_size.py [--shards 400]

A job of so many shards, on a Redis of its own, with all batches under way. Messages in the broker come on top; rows are
not in Redis. Exits 1 if a shard takes more than the bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import redis

from batchpipe.local_redis import acquire
from batchpipe.store import Store
from batchpipe.testing import FakeOpenAI, Pump

MOST_BYTES = 8_192


def request(number: int) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Tell me about it"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def sizes(client: redis.Redis, shards: int) -> dict[str, float]:
    """Bytes of all keys by kind; of shards, of each."""
    total: dict[str, float] = {}
    for key in client.scan_iter():
        kind = key.decode().partition(":")[2].partition(":")[0]
        total[kind] = total.get(kind, 0) + (client.memory_usage(key, samples=0) or 0)
    total["shard"] = total.get("shard", 0) / shards
    total["due"] = total.get("due", 0) / shards
    total["batch"] = total.get("batch", 0) / shards
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=400)
    wanted = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as folder:
        handle = acquire(Path(folder) / "home", environment={})
        client = redis.Redis.from_url(handle.server.url)
        api = FakeOpenAI(autofinish=False)
        store = Store.connect(handle.server.url)
        pump = Pump(Path(folder), api=api, store=store)
        job = pump.submit([request(number) for number in range(wanted)], max_rows=1)
        while pump.job(job).shards != wanted or not all(shard.batch_id for shard in pump.shards(job)):
            pump.step()
        under_way = sizes(client, wanted)
        used = client.info("memory")["used_memory"]
        print(json.dumps({"under way": under_way, "used_memory": used}, indent=2))
        return int(under_way["shard"] + under_way["due"] + under_way["batch"] > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
