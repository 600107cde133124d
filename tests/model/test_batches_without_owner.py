"""A course that chance would not find: every step of it may happen, and together they leave a batch to nobody."""

from __future__ import annotations

from pathlib import Path

import redis

from batchpipe.model.records import Status
from tests.model.schedule import Cast, Choices, Schedule
from tests.model.world import World


def test_a_batch_made_late_under_an_older_key_is_cancelled_though_its_shard_waits_long(
    model_redis: redis.Redis, folder: Path, cast: Cast
) -> None:
    """A worker freezes before its call; the batch made in its place meets a full token queue, so the shard has a new
    key; the worker thaws, calls and is killed; then the provider refuses new batches for an hour.
    """
    world = World(model_redis, folder)
    try:
        endings = iter([Status.FAILED, *[Status.COMPLETED] * 2])
        schedule = Schedule(world, cast, Choices(b""))
        world.api.endings = lambda: next(endings)
        world.api.outcome = lambda: ""
        schedule.until(lambda: any(delivery.link == "create" for delivery in world.waiting))
        schedule.strand_next("create_batch")
        frozen = schedule.actors[0]
        assert frozen.parked
        frozen.frozen = True
        schedule.until(lambda: world.watch.seen.shards["0"]["try"] == "2")
        schedule.let(frozen, 1)
        assert [batch.status for batch in world.api.batches.values()] == [Status.FAILED, "validating"]
        schedule.vanish(frozen)
        world.api.outcome = lambda: "unsent"
        ends = world.at + 3_600.0
        schedule.until(lambda: world.at > ends)
        world.api.outcome = lambda: ""
        schedule.quiet()
    finally:
        world.close()
