"""Short work does not wait behind long transfers, though it lies behind them in the queue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
import redis

from batchpipe.sandbox import Sandbox
from tests.acceptance.place import Place, request, until

#: Of one row: too much for a small shard (``slots.SMALL_BYTES``).
LARGE = 300_000


@pytest.mark.parametrize("options", [(), ("--concurrency", "4")])
def test_a_job_of_one_row_is_done_while_sixty_uploads_wait(
    new_place: Callable[..., Place], new_sandbox: Callable[..., Sandbox], options: tuple[str, ...]
) -> None:
    """It waited for all of them, and behind six hundred for the better part of an hour."""
    sandbox = new_sandbox()
    sandbox.faults.add("slow_upload", bytes=LARGE // 4, seconds=1.0)
    place = new_place("short-" + "".join(options).strip("-"), provider=sandbox)
    place.write("large.jsonl", b"".join(large_row(f"r{number}") for number in range(60)))
    large = place.submit(place.folder / "large.jsonl", "--max-rows", "1", output="large")
    place.worker(*options)
    until(
        lambda: stages(place, large)["planned"] == 60 or stages(place, large)["uploaded"], what="uploads are under way"
    )

    small = place.submit(place.input(1, "small.jsonl"), output="small")
    assert place.run("wait", small, "--timeout", "40").code == 0
    found = stages(place, large)
    assert found["planned"] >= 40, found
    assert place.redis_url is not None
    with redis.Redis.from_url(place.redis_url) as server:
        assert server.llen("batchpipe") <= 60  # the sweep has published none of those that wait anew


def stages(place: Place, job_id: str) -> Counter[str]:
    return Counter(shard["stage"] for shard in place.json("status", job_id)["shards"])


def large_row(custom_id: str) -> bytes:
    return json.dumps(request(custom_id, messages=[{"role": "user", "content": "x" * LARGE}])).encode() + b"\n"
