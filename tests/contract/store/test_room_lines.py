"""Who is granted room first: jobs take turns, and nobody keeps others from theirs."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.admission import Admitted, Waiting
from batchpipe.model.provider import Batch
from batchpipe.model.records import JOB, Counts, Problem, Stage
from batchpipe.store import Store
from tests.contract.store.asking import ask, create, end, held, of_model, turn
from tests.contract.store.protocol import advance, planned, shard


def test_jobs_take_turns_and_a_small_one_does_not_wait_for_a_large_one(store: Store) -> None:
    """A job that comes later begins where the others are."""
    large, small = planned(store, 6), planned(store, 1)
    for index in range(6):
        ask(store, large, index)
    assert ask(store, small) == Waiting(2, 6, "tokens")
    order: list[tuple[str, int]] = []
    for job, index in [(large, 0)] * 3:
        for place in [*order[-1:], *([] if order else [(job, index)])]:
            create(store, *place)
            end(store, *place)
        order += store.admission.take_granted()
        advance(store, turn(store, *order[-1]), Stage.UPLOADED)
    assert order == [(large, 1), (small, 0), (large, 2)]


def test_priority_goes_first_and_an_hour_of_waiting_raises_it(store: Store, clock: Any) -> None:
    """So nobody waits for ever."""
    first, urgent = planned(store, 2), planned(store, 2)
    store.connection.client.hset(store.connection.job_key(urgent), "priority", 1)
    ask(store, first, 0)
    ask(store, first, 1)
    ask(store, urgent, 0)
    ask(store, urgent, 1)
    advance(store, turn(store, first, 0), Stage.COLLECTED)
    assert store.admission.take_granted() == [(urgent, 0)]
    clock.offset += 2 * 3_601
    store.admission.grant("default")
    clock.offset += 3_601
    store.connection.client.zadd(f"{store.connection.prefix}raise:default:-", {urgent: 9e12})
    store.admission.grant("default")
    advance(store, turn(store, urgent, 0), Stage.COLLECTED)
    assert store.admission.take_granted() == [(first, 1)]


def test_small_ones_pass_a_large_one_ten_times(store: Store) -> None:
    """Then they wait until it has gone."""
    base, large, small = planned(store, 1), planned(store, 1), planned(store, 15)
    ask(store, base, 0, 8)
    assert ask(store, large, 0, 9) == Waiting(1, 1, "tokens")
    answers = [ask(store, small, index, 1) for index in range(15)]
    assert answers[:2] == [Admitted(), Admitted()]
    going, passed = [(small, 0), (small, 1)], 0
    while going:
        advance(store, turn(store, *going.pop(0)), Stage.COLLECTED)
        passed += 1
        going += store.admission.take_granted()
    assert passed == 10
    advance(store, turn(store, base, 0), Stage.COLLECTED)
    assert store.admission.take_granted()[0] == (large, 0)


@pytest.mark.parametrize("change", [{"cancel": "1"}, {"hold_at": "1"}, {"stage": "failed"}])
def test_jobs_that_send_nothing_more_are_dropped_from_the_line(store: Store, change: Any) -> None:
    """The next one is granted what is free."""
    base, out, other = planned(store, 1), planned(store, 3), planned(store, 1)
    ask(store, base)
    for index in range(3):
        ask(store, out, index)
    ask(store, other)
    store.connection.client.hset(store.connection.job_key(out), mapping=change)
    advance(store, turn(store, base), Stage.COLLECTED)
    assert store.admission.take_granted() == [(other, 0)]


def test_nothing_is_granted_in_an_account_that_is_paused(store: Store) -> None:
    """The sweep grants when the pause has ended."""
    job = planned(store, 2)
    ask(store, job, 0)
    ask(store, job, 1)
    store.accounts.pause("default", 60, Problem(code="quota", message="m"))
    assert store.admission.waiting_of([(job, 1)]) == {(job, 1): Waiting(1, 1, "paused")}
    advance(store, turn(store, job, 0), Stage.COLLECTED)
    assert (store.admission.take_granted(), store.admission.grant("default")) == ([], [])
    store.accounts.resume("default")
    assert store.admission.grant("default") == [(job, 1)]


def test_a_shard_that_is_larger_than_the_room_goes_alone(store: Store) -> None:
    """The estimate or the limit may be wrong; it would wait for ever else."""
    assert ask(store, planned(store), tokens=50) == Admitted()


@pytest.mark.parametrize("broken", ["needs", "shard", "job"])
def test_a_record_that_cannot_be_read_keeps_nobody_from_room(store: Store, broken: str) -> None:
    """It waits first; the end of another's batch is recorded all the same, and its room goes to the next."""
    first, bad, next_one = planned(store, 1), planned(store, 1), planned(store, 1)
    ask(store, first)
    create(store, first)
    assert isinstance(ask(store, bad), Waiting)
    assert isinstance(ask(store, next_one), Waiting)
    client, key = store.connection.client, store.connection.key
    if broken == "needs":
        client.hset(key(bad, 0), "needs", "{odd")
    else:
        name = key(bad, 0) if broken == "shard" else key(bad, JOB)
        client.delete(name)
        client.set(name, "of another type")
    end(store, first)
    assert shard(store, first).status == "completed"
    assert store.admission.take_granted() == [(next_one, 0)]


def test_what_a_page_of_ends_has_freed_is_granted_to_some_at_once_and_by_the_sweep_to_the_rest(store: Store) -> None:
    """However many there is room for: a script must not keep Redis from everybody else."""
    large, small = planned(store, 3), planned(store, 60)
    for index in range(3):
        ask(store, large, index, tokens=100, limits={"tokens": 300})
        create(store, large, index)
    for index in range(60):
        ask(store, small, index, tokens=1, limits={"tokens": 300})
    batches = [Batch(id=f"batch_{large}_{index}_1", status="completed", counts=Counts()) for index in range(3)]
    seen = store.looks.record_page("default", batches, every=0.0, net=600.0)
    assert (len(seen.granted), held(store)) == (20, 20)
    assert len(store.admission.grant("default")) == 40


def test_a_queue_behind_many_others_that_have_no_room_gets_its_turn(store: Store, clock: Any) -> None:
    """Only so many are looked at in one script."""
    jobs = [planned(store, 2) for _ in range(20)]
    for number, job in enumerate(jobs):
        for index in range(2):
            of_model(store, job, index, f"m{number:02}")
            ask(store, job, index)
    last = jobs[-1]
    create(store, last)
    store.connection.client.delete(f"{store.connection.prefix}granted")
    lease = turn(store, last, 0)
    advance(store, lease, Stage.COLLECTED)
    found = store.admission.take_granted()
    for _ in range(3):
        clock.offset += 1
        found += store.admission.grant("default")
    assert found == [(last, 1)]
