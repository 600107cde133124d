"""Long tasks leave some threads of a worker to short ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr

from batchpipe import tasks
from batchpipe.jobs import JOB, State
from batchpipe.settings import Settings, install_settings
from batchpipe.slots import FEWEST_TRIES, LONGEST_WAIT_SECONDS, MOST_TRIES, Kind, Slots
from batchpipe.store import Store
from batchpipe.testing import Pump
from batchpipe.turns import Again, Go, Next

Rows = Callable[..., list[dict[str, object]]]
SMALL = (1_000, 10)


@pytest.mark.parametrize("threads", [3, 4, 8, 16])
def test_some_threads_are_always_left_to_short_tasks(threads: int) -> None:
    free = Slots(threads).free
    assert min(free.values()) >= 1
    assert sum(free.values()) < threads


def test_a_slot_is_given_back_whatever_happens() -> None:
    slots = Slots(4)
    with ExitStack() as held:
        assert [held.enter_context(slots.take("transfer")) for _ in range(3)] == [True, True, False]
        assert held.enter_context(slots.take("job"))  # apart from transfers
    with pytest.raises(ValueError, match="x"), slots.take("transfer"):
        raise ValueError("x")
    assert slots.free == {"job": 1, "transfer": 2}


def test_who_waits_for_a_slot_asks_in_turn_and_not_too_often() -> None:
    """Ten thousand ask no more often than slots become free, twice over, and nobody waits for ever."""
    at = 1_000.0
    slots = Slots(8, clock=lambda: at)
    waits = [slots.wait("transfer") for _ in range(600)]
    assert waits == sorted(waits)
    assert waits[0] == 1.0
    assert waits[-1] == pytest.approx(1.0 + 599 / 10)  # five slots, each held for a second
    assert max(slots.wait("transfer") for _ in range(30_000)) == LONGEST_WAIT_SECONDS
    at += 1_000
    assert slots.wait("transfer") == 1.0


@pytest.mark.parametrize(("seconds", "tries"), [(40.0, FEWEST_TRIES), (0.01, MOST_TRIES), (2.0, 5.0)])
def test_tries_follow_the_pace_at_which_slots_become_free(seconds: float, tries: float) -> None:
    """Long transfers cost few of them, and short ones do not leave slots idle."""
    at = 1_000.0
    slots = Slots(8, clock=lambda: at)
    for _ in range(60):
        with slots.take("transfer"):
            at += seconds
    first, second = slots.wait("transfer"), slots.wait("transfer")
    assert second - first == pytest.approx(1 / tries, rel=0.01)


def shard_of(pump: Pump, rows: list[dict[str, object]]) -> str:
    job_id = pump.submit(rows)
    while pump.job(job_id).stage != State.RUNNING:
        assert pump.step() is not None
    return job_id


def test_what_waits_for_a_slot_is_not_overdue(tmp_path: Path, chat_rows: Rows) -> None:
    """Else each sweep would publish it anew."""
    pump = Pump(tmp_path)
    job_id = shard_of(pump, chat_rows(20))
    epoch = pump.shards(job_id)[0].epoch
    for _ in range(10):
        assert pump.store.bounce(job_id, 0, epoch, 300.0, small=SMALL) == "later"
        pump.advance(300)
        assert pump.sweep() == 0
    pump.waiting.clear()  # its worker dies
    pump.advance(100)
    assert pump.sweep() == 1


def test_a_small_shard_needs_no_slot_and_a_void_message_is_not_kept(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path)
    job_id = shard_of(pump, chat_rows(1))
    epoch = pump.shards(job_id)[0].epoch
    assert pump.store.bounce(job_id, 0, epoch, 1.0, small=SMALL) == "small"
    assert pump.store.bounce(job_id, 0, epoch + 1, 1.0, small=SMALL) == "claim"
    assert pump.store.bounce(job_id, 7, epoch, 1.0, small=SMALL) == "claim"
    assert pump.store.bounce(job_id, JOB, pump.job(job_id).epoch, 1.0, small=SMALL) == "later"


@pytest.fixture
def bounded(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Pump]:
    """Tasks of a worker of four threads, on the records of a pump."""
    url = SecretStr(redis_url)
    install_settings(Settings(_env_file=None, redis_url=url, prefix=prefix, home=tmp_path))
    tasks.bound_long_tasks(4)
    yield Pump(tmp_path, store=Store(tasks.runtime().store.client, prefix=prefix))
    tasks.bound_long_tasks(1)


def test_a_transfer_without_a_slot_comes_back_and_claims_nothing(bounded: Pump, chat_rows: Rows) -> None:
    job_id = shard_of(bounded, chat_rows(300))
    shard = bounded.shards(job_id)[0]

    def turn() -> Next:
        return Go("done")

    def take(kind: Kind = "transfer") -> Next:
        return tasks._bounded(kind, job_id, 0, shard.epoch, turn)

    assert take() == Go()
    with ExitStack() as held:
        slots = tasks._slots
        assert slots is not None
        for _ in range(2):
            held.enter_context(slots.take("transfer"))
        found = take()
        assert isinstance(found, Again)
        assert found.after >= 1.0
        assert take("job") == Go()
    assert take() == Go()
    assert bounded.shards(job_id)[0].tries == shard.tries
