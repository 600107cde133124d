"""Admission at random: the shipped scripts, workers that die, answers that are lost, keys that Redis forgets."""

from __future__ import annotations

import random
from typing import Any

import pytest

from batchpipe.model.admission import Limits
from tests.model.admission_world import Faults, World
from tests.model.limited_provider import Provider
from tests.redis_server import new_redis

LONG = 6 * 3_600.0  #: much longer than any of these takes
ROOM = 1_000  #: tokens that the provider takes of a model
KNOWN: Limits = {"tokens": ROOM}


def world(provider: Provider, limits: Limits, *, seed: int, faults: Faults | None = None) -> World:
    return World(new_redis(), provider, seed=seed, faults=faults, limits=limits)


def shards(seed: int, count: int, *sizes: int) -> list[tuple[int, float]]:
    """(bytes, seconds) of each: sizes in tokens."""
    rng = random.Random(seed)
    return [(4 * rng.choice(sizes), rng.uniform(60, 300)) for _ in range(count)]


def nothing_is_left(world: World) -> None:
    """All that was held is given back, and no line remembers anybody."""
    world.faults = Faults()
    for account in world.store.admission.accounts():
        world.store.admission.rebuild(account)
        world.store.admission.grant(account)
        assert all(found == (0, 0) for found in world.held(account).values()), world.held(account)
    assert world.left() == []


def never_above(world: World) -> None:
    assert world.provider.queued("m") <= ROOM


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sizes", [(100,), (20, 100, 250, 500)])
def test_no_room_leaks_and_none_is_refused_whoever_dies(seed: int, sizes: tuple[int, ...]) -> None:
    """Also where scripts are repeated, answers lost and Redis' keys forgotten."""
    faults = Faults(kill=0.08, repeat=0.05, lose=0.03)
    found = world(Provider({"m": ROOM}), KNOWN, seed=seed, faults=faults)
    found.watch = never_above
    for job in range(4):
        found.submit(shards(seed * 10 + job, 2 + 4 * job, *sizes), priority=job % 2)
    found.run(LONG)
    assert (found.provider.refusals, found.kills > 10) == (0, True)
    nothing_is_left(found)


@pytest.mark.slow
def test_a_thousand_deaths_leave_nothing_held() -> None:
    """Each between two calls of a turn, wherever that is."""
    found = world(Provider({"m": ROOM}), KNOWN, seed=7, faults=Faults(kill=0.3, repeat=0.02))
    for job in range(6):
        found.submit(shards(job, 50, 100))
    found.run(4 * LONG)
    assert (found.kills >= 1_000, found.provider.refusals) == (True, 0)
    nothing_is_left(found)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_limit_that_nobody_knows_is_learned(seed: int, says: bool, at_once: bool) -> None:
    """After the first wave hardly any is refused, though workers die and holds are lost."""
    provider = Provider({"m": ROOM}, says_limit=says, fails_at_once=at_once)
    found = world(provider, {}, seed=seed, faults=Faults(kill=0.03, repeat=0.03, lose=0.02, forget=0.02))
    for job in range(3):
        found.submit(shards(seed * 10 + job, 8, 100, 200))
    found.run(2 * LONG)
    nothing_is_left(found)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize(("limit", "most"), [({"most_batches": 4}, 35), ({"per_minute": 3}, 60)])
def test_limits_of_batches_and_of_creations_are_learned_too(
    seed: int, says: bool, limit: dict[str, Any], most: int
) -> None:
    """Some are refused at the first, and when more is tried; not each of 30 shards finds out by itself.

    With three creations a minute and nothing learned it would be 27 + 24 + ... + 3 = 135. It is 32 to 46 where the
    limit is not said, for chance decides who dies; of four batches at a time 17 to 21.
    """
    provider = Provider({"m": 100 * ROOM}, says_limit=says, **limit)
    found = world(provider, {}, seed=seed, faults=Faults(kill=0.03, repeat=0.03, lose=0.02, forget=0.02))
    for job in range(3):
        found.submit(shards(seed * 10 + job, 10, 100, 200))
    found.run(2 * LONG)
    assert provider.refusals <= most
    nothing_is_left(found)


def test_a_wrong_limit_and_others_in_the_same_queue_are_lived_with() -> None:
    """The settings say twice what there is, and others take half of that."""
    provider = Provider({"m": ROOM}, says_limit=False, foreign=ROOM // 2)
    found = world(provider, {"tokens": 2 * ROOM}, seed=3, faults=Faults(kill=0.02))
    found.submit(shards(3, 15, 100, 300))
    found.run(2 * LONG)
    nothing_is_left(found)


def test_a_small_job_is_not_starved_by_a_large_one() -> None:
    """It comes when the other has filled the room, and is through long before it."""
    found = world(Provider({"m": ROOM}), KNOWN, seed=4)
    large = found.submit([(400, 300.0)] * 60)
    small: list[str] = []
    found.after(120.0, lambda: small.append(found.submit([(400, 300.0)] * 2)))
    found.run(LONG)
    ends = {job: max(at for (of, _), at in found.collected.items() if of == job) for job in (large, small[0])}
    begun = min(found.collected.values()) - 300.0
    assert ends[small[0]] - begun < 0.5 * (ends[large] - begun)
    nothing_is_left(found)


def test_the_room_is_used_and_the_whole_is_near_the_ideal() -> None:
    """Five jobs, room for ten shards."""
    found = world(Provider({"m": ROOM}), KNOWN, seed=5)
    work = 0.0
    for job, count in enumerate((40, 10, 5, 4, 1)):
        mine = shards(job, count, 100)
        work += sum(size // 4 * seconds for size, seconds in mine)
        found.submit(mine)
    took = found.run(LONG)
    assert found.provider.refusals == 0
    assert found.use(ROOM) >= 0.9
    assert took <= 1.15 * (work / ROOM + 300.0)
