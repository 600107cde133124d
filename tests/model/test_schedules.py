"""The real scripts and turns through schedules of crashes, freezes, losses and repeats that hypothesis makes up.

A failing schedule is shrunk to few faults, and told step by step in the failure's notes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.schedule import Cast, run_schedule
from tests.size import scaled

COUNT = scaled(1000)


@pytest.mark.scaled
@pytest.mark.timeout(120 + COUNT)
@settings(
    max_examples=COUNT,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.binary(min_size=60, max_size=160))
def test_every_schedule_of_faults_ends_with_each_row_paid_for_once(
    model_redis: redis.Redis, folder: Path, cast: Cast, data: bytes
) -> None:
    """No shard or job is stuck, no write goes without a lease, one batch is kept per key, each round merges once."""
    run_schedule(model_redis, folder, cast, data)
