"""The same schedules from plain random numbers, which go further than hypothesis dares; and what they have met.

Longer runs: ``MODEL_SCHEDULES=50000 MODEL_SEED=1 pytest tests/model/test_schedules_at_random.py``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
import redis

from tests.model.invariants import Broken
from tests.model.schedule import Cast, run_schedule
from tests.size import scaled

COUNT = int(os.environ.get("MODEL_SCHEDULES", 0)) or scaled(1000)
SEED = int(os.environ.get("MODEL_SEED", "0"))

#: What a thousand schedules meet at least once, or they would prove nothing.
MET = (
    "crash",
    "cancel",
    "clock moved",
    "repeat",
    "away",
    "away after",
    "unanswered",
    "dropped",
    "unsent",
    "trouble",
    "refused",
    "no file",
    "refused: lease",
    "refused: epoch",
    "refused: stage",
    "refused: early",
    "republish mark",
    "call late",
    "settle late",
    "settle known",
    "settle cancel",
    "orphan cancelled",
    "rounds beyond the first",
    "abandoned: cancelled",
    "abandoned: invalid_request",
)


@pytest.mark.scaled
@pytest.mark.timeout(120 + COUNT)
def test_random_schedules_meet_every_kind_of_fault_and_break_no_promise(
    model_redis: redis.Redis, folder: Path, cast: Cast
) -> None:
    """A failing seed is told: ``MODEL_SEED=it MODEL_SCHEDULES=1`` runs it alone."""
    facts: Counter[str] = Counter()
    for seed in range(SEED, SEED + COUNT):
        maker = random.Random(seed)
        try:
            facts.update(run_schedule(model_redis, folder, cast, maker.randbytes(maker.randrange(60, 200))))
        except Broken as broken:
            broken.add_note(f"MODEL_SEED={seed}")
            raise
    print("\n".join(f"{count:8d} {fact}" for fact, count in sorted(facts.items())))  # pytest -s
    assert facts["schedules"] == COUNT
    if COUNT >= 1000:
        assert [fact for fact in MET if not facts[fact]] == []
