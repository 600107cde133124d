"""The model would notice: with any one clause of the protocol taken out of a script, some schedule breaks a promise."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import redis

from tests.model.invariants import Broken
from tests.model.mutations import MUTATIONS, OF_WALKS, Mutation
from tests.model.schedule import Cast, run_schedule

#: Seeds tried; most are found within a few dozen.
SEEDS = 600


@pytest.mark.parametrize("mutations", [MUTATIONS, OF_WALKS])
def test_the_clauses_that_are_taken_out_are_in_their_scripts(mutations: dict[str, Mutation]) -> None:
    """Else a change of a script is told by the slow tests only."""
    for mutation in mutations.values():
        assert mutation(mutation.script)


@pytest.mark.slow
@pytest.mark.parametrize("words", MUTATIONS)
def test_the_model_notices_when(words: str, model_redis: redis.Redis, folder: Path, cast: Cast) -> None:
    """The scripts that are shipped stay as they are: only their text on its way to Redis is changed."""
    for seed in range(SEEDS):
        try:
            run_schedule(model_redis, folder, cast, random.Random(seed).randbytes(120), MUTATIONS[words])
        except Broken:
            return
    pytest.fail(f"{SEEDS} schedules did not notice that {words}")
