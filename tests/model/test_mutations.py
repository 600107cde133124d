"""The model would notice: with any one clause of the protocol taken out of a script, some schedule breaks a promise."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import redis

from tests.model.invariants import Broken
from tests.model.mutations import MUTATIONS
from tests.model.schedule import Cast, run_schedule

pytestmark = pytest.mark.slow

#: Seeds tried; most are found within a few dozen.
SEEDS = 600


@pytest.mark.parametrize("words", MUTATIONS)
def test_the_model_notices_when(words: str, model_redis: redis.Redis, folder: Path, cast: Cast) -> None:
    """The scripts that are shipped stay as they are: only their text on its way to Redis is changed."""
    for seed in range(SEEDS):
        try:
            run_schedule(model_redis, folder, cast, random.Random(seed).randbytes(120), MUTATIONS[words])
        except Broken:
            return
    pytest.fail(f"{SEEDS} schedules did not notice that {words}")
