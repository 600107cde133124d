"""Room is reserved before a shard is sent, and given back with the end of its batch."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.admission import FIRST_RATIO, Admitted, Waiting, needs_of
from batchpipe.model.records import Stage
from batchpipe.store import Store
from tests.contract.store.asking import TEN, ask, create, end, held, needs, of_model, turn
from tests.contract.store.protocol import about, advance, due_in, planned, shard


def test_what_fits_is_held_and_what_does_not_waits_with_its_place(store: Store) -> None:
    """The answer says how many wait, and what is lacking."""
    job = planned(store, 3)
    assert ask(store, job, 0) == Admitted()
    assert ask(store, job, 1) == Waiting(1, 1, "tokens")
    assert ask(store, job, 2) == Waiting(2, 2, "tokens")
    assert store.admission.waiting_of([(job, 0), (job, 1), (job, 2)]) == {
        (job, 1): Waiting(1, 2, "tokens"),
        (job, 2): Waiting(2, 2, "tokens"),
    }
    assert (held(store), held(store, "batches"), held(store, "creations")) == (10, 1, 1)


def test_who_holds_something_or_waits_may_ask_again(store: Store) -> None:
    """A repeat changes nothing."""
    job = planned(store, 2)
    lease = turn(store, job)
    for _ in range(2):
        assert store.admission.admit(lease, needs(10), TEN) == Admitted()
    other = turn(store, job, 1)
    for _ in range(2):
        assert store.admission.admit(other, needs(10), TEN) == Waiting(1, 1, "tokens")
    assert (held(store), held(store, "creations")) == (10, 1)


def test_who_has_lost_the_lease_reserves_nothing(store: Store, clock: Any) -> None:
    """A worker that was frozen must not hold room for ever."""
    lease = turn(store, planned(store))
    clock.offset += 61
    with pytest.raises(LeaseLost):
        store.admission.admit(lease, needs(1), TEN)
    assert store.admission.rooms("default") == []


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled"])
def test_the_end_of_a_batch_gives_its_room_to_the_next_who_is_due_at_once(store: Store, status: str) -> None:
    """In the script that records the final status, whoever calls it; a repeat gives nothing more."""
    job = planned(store, 3)
    for index in range(3):
        ask(store, job, index)
    create(store, job, 0)
    assert due_in(store, job, 1) == about(660)
    end(store, job, 0, status)
    end(store, job, 0, status)
    assert due_in(store, job, 1) == about(0)
    assert store.admission.take_granted() == [(job, 1)]
    assert store.admission.take_granted() == []
    assert held(store) == 10
    assert store.admission.waiting_of([(job, 1), (job, 2)]) == {(job, 2): Waiting(1, 1, "tokens")}


def test_a_shard_that_is_granted_room_within_its_turn_is_published_again_at_its_end(store: Store) -> None:
    """Else its own pause would hide the grant for ten minutes."""
    job = planned(store, 2)
    ask(store, job, 0)
    create(store, job, 0)
    lease = turn(store, job, 1)
    assert store.admission.admit(lease, needs(10), TEN) == Waiting(1, 1, "tokens")
    end(store, job, 0)
    news, _ = advance(store, lease, Stage.PLANNED, after=600)
    assert news.republish
    assert due_in(store, job, 1) == about(60)


def test_giving_a_shard_up_gives_back_what_it_held_or_its_place(store: Store) -> None:
    """Nothing of it is left in the line or the sums."""
    job = planned(store, 3)
    for index in range(3):
        ask(store, job, index)
    advance(store, turn(store, job, 0), Stage.COLLECTED)
    assert store.admission.take_granted() == [(job, 1)]
    advance(store, turn(store, job, 1), Stage.COLLECTED)
    advance(store, turn(store, job, 2), Stage.COLLECTED)
    assert (held(store), held(store, "batches")) == (0, 0)
    assert all(room.waiting == 0 for room in store.admission.rooms("default"))


def test_no_call_is_made_for_a_shard_that_holds_nothing(store: Store) -> None:
    """Workers of an older version ask for nothing, and are not asked."""
    job = planned(store)
    advance(store, turn(store, job), Stage.UPLOADED)
    lease = turn(store, job)
    assert store.leases.record_intent(lease, admitted=True).no_hold
    assert shard(store, job).intent_at is None
    assert not store.leases.record_intent(lease).no_hold


def test_a_withdrawn_call_keeps_its_room_until_nobody_uses_it(store: Store, clock: Any) -> None:
    """Else an outage would have the files of all who wait uploaded, one after the other."""
    job = planned(store, 2)
    for index in range(2):
        ask(store, job, index)
    lease = turn(store, job)
    store.leases.record_intent(lease, admitted=True)
    store.shards.withdraw_call(lease.shard, lease.token)
    store.shards.withdraw_call(lease.shard, lease.token)
    advance(store, lease, Stage.UPLOADED, after=5)
    assert [(room.held, room.sent) for room in store.admission.rooms("default") if room.kind == "tokens"] == [(10, 0)]
    clock.offset += 1_000
    assert store.admission.rebuild("default").dropped == 2  # tokens and the batch
    assert store.admission.grant("default") == [(job, 1)]


def test_creations_and_uploads_are_counted_within_their_span(store: Store, clock: Any) -> None:
    """Never more within any hour or minute; they come back by themselves."""
    job, limits = planned(store, 4), {"creations": 3, "uploads": 2}
    answers = []
    for index in range(4):
        lease = turn(store, job, index)
        answers.append(store.admission.admit(lease, needs(1, uploads=1), limits))  # type: ignore[arg-type]
        advance(store, lease, Stage.PLANNED, after=600)
    assert answers == [Admitted(), Admitted(), Waiting(1, 1, "uploads"), Waiting(2, 2, "uploads")]
    clock.offset += 62
    assert store.admission.grant("default") == [(job, 2)]
    assert store.admission.waiting_of([(job, 3)]) == {(job, 3): Waiting(1, 1, "creations")}
    clock.offset += 3_600
    assert store.admission.grant("default") == [(job, 3)]


def test_models_and_accounts_have_rooms_of_their_own(store: Store) -> None:
    """Batches in flight are the account's."""
    one, other = planned(store, 2), planned(store, 1, account="other")
    of_model(store, one, 1, "ft:gpt:org::id")
    assert ask(store, one, 0, limits={"tokens": 10, "batches": 1}) == Admitted()
    assert ask(store, one, 1, limits={"tokens": 10, "batches": 1}) == Waiting(1, 1, "batches")
    assert ask(store, other, 0, limits={"tokens": 10, "batches": 1}) == Admitted()
    advance(store, turn(store, one, 0), Stage.COLLECTED)
    assert store.admission.take_granted() == [(one, 1)]
    assert {room.model: room.held for room in store.admission.rooms("default") if room.kind == "tokens"} == {
        None: 0,
        "ft:gpt:org::id": 10,
    }
    assert store.admission.accounts() == ["default", "other"]


def test_a_rebuild_heals_what_was_lost(store: Store) -> None:
    """Shards in flight get their holds, sums are those of the holds, and holds of the gone go."""
    job = planned(store, 3)
    for index in range(3):
        ask(store, job, index, limits={})
        create(store, job, index)
    client, prefix = store.connection.client, store.connection.prefix
    for key in list(client.scan_iter(f"{prefix}held:*")):
        client.delete(key)
    client.hset(f"{prefix}room:default:tokens:-", "sum", 77)
    client.hset(f"{prefix}held:default:batches:5", "job_gone/0", "1")
    found = store.admission.rebuild("default")
    assert (found.dropped, found.added) == (1, 3)
    assert (held(store), held(store, "batches")) == (30, 3)
    assert store.admission.rebuild("default").corrected == 0


def test_without_a_known_limit_not_all_goes_at_once(store: Store, clock: Any) -> None:
    """A full queue is learned of minutes later: until then twice as much each minute."""
    job = planned(store, 40)
    answers = [ask(store, job, index, 1_000_000, limits={}) for index in range(40)]
    assert sum(isinstance(answer, Admitted) for answer in answers) == 16
    clock.offset += 61
    assert len(store.admission.grant("default")) == 16
    clock.offset += 61
    assert len(store.admission.grant("default")) == 8


def test_the_ratio_of_bytes_to_tokens_is_learned_for_each_model(store: Store) -> None:
    """A quarter where nothing is known."""
    assert store.admission.ratio("m") == FIRST_RATIO
    store.admission.observe("m", 1_000, 500)
    store.admission.observe("m", 3_000, 1_500)
    assert store.admission.ratio("m") == 0.5
    assert store.admission.ratio(None) == FIRST_RATIO
    assert needs_of(1_000, 0.5, upload=True) == {"tokens": 525, "batches": 1, "creations": 1, "uploads": 1}


def test_versions_of_a_model_share_a_room(store: Store) -> None:
    job = planned(store, 2)
    of_model(store, job, 0, "gpt-4o")
    of_model(store, job, 1, "gpt-4o-2024-08-06")
    assert ask(store, job, 0) == Admitted()
    assert isinstance(ask(store, job, 1), Waiting)
    assert [room.model for room in store.admission.rooms("default") if room.kind == "tokens"] == ["gpt-4o"]


def test_one_process_a_minute_compares_what_is_held_with_the_records(store: Store) -> None:
    assert store.admission.begin_rebuild("default", 60.0)
    assert not store.admission.begin_rebuild("default", 60.0)
    assert store.admission.begin_rebuild("other", 60.0)


def test_shards_of_workers_of_an_earlier_version_come_into_flight_and_leave_it(store: Store) -> None:
    """They neither add theirs nor take those out that they have moved on."""
    job = planned(store, 2)
    for index in range(2):
        ask(store, job, index, limits={})
        create(store, job, index)
    key = f"{store.connection.prefix}inflight:default"
    store.connection.client.delete(key)
    advance(store, turn(store, job, 0), Stage.CREATED, after=5)
    assert [member for member, _ in store.looks.in_flight("default")] == [f"{job}/0"]
    store.connection.client.hset(store.connection.key(job, 0), "stage", "ended")
    store.admission.rebuild("default")
    assert list(store.looks.in_flight("default")) == []
