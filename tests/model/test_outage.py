"""Many creates without an answer, and walks through the list of whomever: no rows are paid for twice.

Longer runs: ``OUTAGES=50000 MODEL_SEED=1 pytest tests/model/test_outage.py``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
import redis

from tests.model.invariants import Broken
from tests.model.mutations import OF_WALKS
from tests.model.outage import run_outage
from tests.model.schedule import Cast
from tests.size import scaled

COUNT = int(os.environ.get("OUTAGES", 0)) or scaled(300)
SEED = int(os.environ.get("MODEL_SEED", "0"))
#: Seeds tried for each mutation.
SEEDS = 1_500
#: What three hundred schedules meet at least once.
MET = ("unanswered", "dropped", "unsent", "crash", "trouble", "settle late", "settle ok", "walks")


def schedule(seed: int) -> bytes:
    maker = random.Random(seed)
    return maker.randbytes(maker.randrange(80, 260))


@pytest.mark.scaled
@pytest.mark.timeout(120 + COUNT)
def test_walks_of_whomever_never_let_rows_be_paid_for_twice(model_redis: redis.Redis, folder: Path, cast: Cast) -> None:
    """Walkers crash, freeze and fail half way, two walk at once, batches are listed late, with metadata or without; in
    the end each shard has its batch, or none. A failing seed is told.
    """
    facts: Counter[str] = Counter()
    for seed in range(SEED, SEED + COUNT):
        try:
            facts.update(run_outage(model_redis, folder, cast, schedule(seed)))
        except Broken as broken:
            broken.add_note(f"MODEL_SEED={seed}")
            raise
    print("\n".join(f"{count:8d} {fact}" for fact, count in sorted(facts.items())))  # pytest -s
    if COUNT >= 300:
        assert [fact for fact in MET if not facts[fact]] == []


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("words", OF_WALKS)
def test_the_model_of_an_outage_notices_when(words: str, model_redis: redis.Redis, folder: Path, cast: Cast) -> None:
    """Only the text of the scripts on its way to Redis is changed."""
    for seed in range(SEEDS):
        try:
            run_outage(model_redis, folder, cast, schedule(seed), OF_WALKS[words])
        except Broken:
            return
    pytest.fail(f"{SEEDS} schedules did not notice that {words}")
