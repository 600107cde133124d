"""Ten thousand ended shards and few workers: the sweep must not outrun them, with messages or without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.model.backlog_sim import DOWNLOAD_SECONDS, Backlog, Drained
from tests.model.mutations import Mutation

pytestmark = pytest.mark.slow

WORKERS = 8


@contextmanager
def a_backlog(client: redis.Redis, folder: Path, **how: Any) -> Iterator[Backlog]:
    backlog = Backlog(client, folder, workers=WORKERS, **how)
    try:
        yield backlog
    finally:
        backlog.close()


def assert_drained(backlog: Backlog, result: Drained, jobs: int) -> None:
    """All are collected, each job went on to its merge once, and nothing but those merges is due."""
    assert len(result.waited) == backlog.shards
    assert result.merges == jobs
    assert {index for _, index in backlog.store.due.overdue(100_000)} <= {-1}
    assert backlog.store.connection.client.zcard(f"{backlog.store.connection.prefix}due") == jobs


@pytest.mark.timeout(300)
def test_a_backlog_of_ten_thousand_shards_drains_and_the_sweep_does_not_outrun_the_workers(
    model_redis: redis.Redis, tmp_path: Path
) -> None:
    """Void messages cost the workers next to nothing, for the margin doubles: no more than three a shard."""
    with a_backlog(model_redis, tmp_path, jobs=5, shards=2_000) as backlog:
        result = backlog.drain()
        assert_drained(backlog, result, 5)
        assert result.published.total() <= result.promised(60.0)
        assert result.published.total() < 3 * backlog.shards
        assert result.seconds < 1.1 * backlog.shards * DOWNLOAD_SECONDS / WORKERS + 10.0


@pytest.mark.timeout(300)
def test_a_backlog_whose_messages_are_all_lost_drains(model_redis: redis.Redis, tmp_path: Path) -> None:
    """As after the loss of a broker: each shard comes back when it is due, and not more often than promised."""
    with a_backlog(model_redis, tmp_path, jobs=2, shards=1_500) as backlog:
        result = backlog.drain(lose_all_at=30.0)
        assert_drained(backlog, result, 2)
        assert result.published.total() <= result.promised(60.0)


@pytest.mark.timeout(300)
def test_without_the_doubled_margin_the_sweep_would_outrun_the_workers(
    model_redis: redis.Redis, tmp_path: Path
) -> None:
    """The bound notices a sweep that publishes too much."""
    single = Mutation("common", "2 ^ math.min(pubs, 20)", "1")
    with a_backlog(model_redis, tmp_path, jobs=1, shards=2_000, lease=5.0, text=single) as backlog:
        result = backlog.drain(give_up=1_800.0)
        assert result.published.total() > result.promised(5.0) + 2_000
