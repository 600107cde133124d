"""A database of a real Redis for the model alone, and the actors of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.model.schedule import Cast, a_cast


@pytest.fixture(scope="module")
def model_redis(redis_url: str) -> Iterator[redis.Redis]:
    """Database 1: nobody else's keys are in it."""
    with redis.Redis.from_url(redis_url.removesuffix("/0") + "/1", decode_responses=True) as client:
        yield client


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with a_cast() as actors:
        yield actors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one tiny file lies that all schedules upload."""
    return tmp_path_factory.mktemp("model")
