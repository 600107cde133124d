"""What a refusal teaches about the room there is, and how it is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.admission import Admitted, Full, Waiting
from batchpipe.model.records import Stage
from batchpipe.store import Store
from tests.contract.store.asking import ask, create, end, held, learned, needs, refuse, turn
from tests.contract.store.protocol import advance, planned, shard


def test_a_refusal_lowers_the_limit_and_grants_nobody(store: Store) -> None:
    """The shard is the first of its job; the number in the provider's words is the limit."""
    job = planned(store, 4)
    for index in range(4):
        ask(store, job, index, limits={})
        create(store, job, index)
    refuse(store, job, 3, 30)
    assert store.admission.limit("default", None, {}) == 30
    assert store.admission.limit("default", None, {"tokens": 20}) == 20
    assert (held(store), store.admission.take_granted()) == (30, [])
    assert store.admission.grant("default") == []
    assert shard(store, job, 3).full is None
    end(store, job, 0)
    assert store.admission.take_granted() == [(job, 3)]


def test_without_a_number_the_limit_is_nine_tenths_of_what_was_there_when_it_refused(store: Store) -> None:
    """However many others have ended by the time when that is seen, or were refused with it."""
    job = planned(store, 5)
    for index in range(5):
        ask(store, job, index, limits={})
        create(store, job, index)
    end(store, job, 0)
    refuse(store, job, 4)
    refuse(store, job, 3)
    assert learned(store) == 36
    # by which no shard is cut: nobody said that the queue is so small
    assert store.admission.limit("default", None, {}) == 100_000


@pytest.mark.parametrize("limit", [2_000_000, None])
def test_a_queue_that_others_fill_is_not_taken_for_a_small_one(store: Store, clock: Any, limit: int | None) -> None:
    """What little we had there says nothing of it: one tries again soon, and no job is cut to dust meanwhile."""
    job = planned(store, 2)
    for index in range(2):
        ask(store, job, index, tokens=500, limits={})
    create(store, job, 0)
    refuse(store, job, 0, limit)
    assert learned(store) == limit
    assert store.admission.limit("default", None, {}) == limit
    assert store.admission.grant("default") == []
    clock.offset += 15
    assert store.admission.grant("default") == [(job, 0)]


@pytest.mark.parametrize(
    ("there", "said", "learned"), [(4, 3, 3), (4, None, 3), (2, None, 1), (1, None, None), (3, 7, 7)]
)
def test_a_refusal_of_one_batch_too_many_lowers_the_limit_of_batches(
    there: int, said: int | None, learned: int | None, store: Store
) -> None:
    """By the number that was said, if what was there was more; else by a tenth, and by one at least. Where it is others
    that fill the provider, what we have there teaches nothing.
    """
    job = planned(store, there)
    for index in range(there):
        ask(store, job, index, limits={})
        create(store, job, index)
    refuse(store, job, there - 1, said, "batches")
    (room,) = (room for room in store.admission.rooms("default") if room.kind == "batches")
    assert (room.learned, room.held) == (learned, there - 1)
    assert store.admission.limit("default", None, {}) is None


def test_a_provider_may_look_at_batches_in_another_order_than_that_in_which_they_came(store: Store) -> None:
    """Who was sent among the first, and is refused after others were let in, says nothing against the number."""
    job = planned(store, 9)
    for index in range(9):
        ask(store, job, index, limits={})
        create(store, job, index)
    for index in (8, 7, 6, 1, 0):
        refuse(store, job, index, 40)
    assert store.admission.limit("default", None, {}) == 40


def test_nor_does_the_first_refusal_that_is_noticed_when_others_have_ended(store: Store) -> None:
    """What was there at once is remembered."""
    job = planned(store, 6)
    for index in range(6):
        ask(store, job, index, limits={})
        create(store, job, index)
    for index in (2, 3, 4, 5):
        end(store, job, index)
    refuse(store, job, 1, 40)
    assert store.admission.limit("default", None, {}) == 40


def test_without_a_number_the_limit_is_not_lowered_below_what_was_let_in(store: Store) -> None:
    """Nine tenths of that, with the one that was refused."""
    job = planned(store, 9)
    for index in range(9):
        ask(store, job, index, limits={})
        create(store, job, index)
    for index in (8, 7, 6, 1, 0):
        refuse(store, job, index)
    assert learned(store) == 45


def test_a_number_is_not_believed_of_which_less_was_refused_once_it_was_the_limit(store: Store, clock: Any) -> None:
    """Others are in the same queue."""
    job = planned(store, 8)
    for index in range(6):
        ask(store, job, index, limits={})
        create(store, job, index)
    refuse(store, job, 5, 40)
    for index in range(4):
        end(store, job, index)
    clock.offset += 60
    ask(store, job, 6, limits={})
    create(store, job, 6)
    refuse(store, job, 6, 40)
    assert learned(store) == 18


def test_a_learned_number_of_batches_is_raised_by_one_that_tries(store: Store, clock: Any) -> None:
    """A twentieth of a few batches is one."""
    job = planned(store, 8)
    for index in range(4):
        ask(store, job, index, limits={})
        create(store, job, index)
    refuse(store, job, 3, None, "batches")
    for index in range(4, 8):
        ask(store, job, index, limits={})
    for ended in range(2):
        assert store.admission.grant("default") == []
        clock.offset += 601
        assert len(store.admission.grant("default")) == 1
        end(store, job, ended)  # what tried is not above the limit any more
    (room,) = (room for room in store.admission.rooms("default") if room.kind == "batches")
    assert room.learned == 4


def test_a_call_too_many_closes_its_room_for_the_time_that_was_named(store: Store, clock: Any) -> None:
    """It was not made, so it does not count; a number of which more was used is one of another span."""
    job = planned(store, 5)

    def refused(index: int, full: Full) -> None:
        lease = turn(store, job, index)
        assert store.admission.admit(lease, needs(1, uploads=1), {}) == Admitted()
        advance(store, lease, Stage.PLANNED, after=full.after or 5.0, full=full)

    def rooms() -> dict[str, tuple[int, int | None]]:
        return {room.kind: (room.held, room.learned) for room in store.admission.rooms("default")}

    ask(store, job, 0, 1, {})
    refused(1, Full(kind="uploads", limit=60, after=20.0))
    assert rooms()["uploads"] == (0, 60)
    assert rooms()["tokens"] == (1, None)
    clock.offset += 19
    assert store.admission.grant("default") == []
    assert store.admission.waiting_of([(job, 1)]) == {(job, 1): Waiting(1, 1, "uploads")}
    clock.offset += 2
    assert store.admission.grant("default") == [(job, 1)]
    assert rooms()["uploads"] == (1, 60)


def test_an_upload_that_is_refused_uses_up_no_creation(store: Store) -> None:
    """None was made: else a provider that slows uploads down would close the creations of the hour, too."""
    job = planned(store, 1)
    for _ in range(3):
        lease = turn(store, job)
        assert store.admission.admit(lease, needs(1, uploads=1), {"creations": 2}) == Admitted()
        advance(store, lease, Stage.PLANNED, after=0, full=Full(kind="uploads"))
        assert store.admission.grant("default") in ([], [(job, 0)])
    used = {room.kind: room.held for room in store.admission.rooms("default")}
    assert used["creations"] <= 1


def test_who_was_let_in_before_does_not_create_while_creations_are_closed(store: Store, clock: Any) -> None:
    """Else each of them would be refused, too."""
    job = planned(store, 3)
    for index in range(3):
        ask(store, job, index, 1, {})
    lease = turn(store, job, 0)
    advance(store, lease, Stage.UPLOADED, after=30, full=Full(kind="creations", after=30.0))
    lease = turn(store, job, 1)
    assert store.leases.record_intent(lease, admitted=True).no_hold
    advance(store, lease, Stage.UPLOADED, after=30)
    clock.offset += 31
    assert store.admission.grant("default")[:2] == [(job, 0), (job, 1)]


def test_a_room_that_refuses_though_nothing_is_in_it_is_tried_by_one_with_growing_pauses(
    store: Store, clock: Any
) -> None:
    """Others fill it: all who wait would be refused, too."""
    job, pauses = planned(store, 3), []
    for index in range(3):
        ask(store, job, index, limits={})
    for _ in range(4):
        create(store, job, 0)
        refuse(store, job, 0)
        begun = clock.offset
        while not (found := store.admission.grant("default")):
            clock.offset += 5
        pauses.append(clock.offset - begun)
        assert found == [(job, 0)]
        clock.offset += 1
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 4 * pauses[0]


def test_a_learned_limit_is_raised_by_one_that_tries_and_forgotten_after_a_day(store: Store, clock: Any) -> None:
    """Every ten minutes while the room is used; a raised limit at the provider is noticed."""
    job = planned(store, 8)
    for index in range(4):
        ask(store, job, index, limits={})
        create(store, job, index)
    refuse(store, job, 3)
    assert learned(store) == 36
    for index in range(4, 8):
        ask(store, job, index, limits={})
    assert store.admission.grant("default") == []
    clock.offset += 601
    assert len(store.admission.grant("default")) == 1
    assert store.admission.grant("default") == []
    clock.offset += 601
    assert len(store.admission.grant("default")) == 1
    assert learned(store) == 40
    clock.offset += 86_401
    assert store.admission.limit("default", None, {}) is None
