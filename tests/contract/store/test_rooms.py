"""Room is reserved before a shard is sent, given back with the end of its batch, and granted in fair order."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.admission import FIRST_RATIO, Admitted, Full, Kind, Limits, Waiting, needs_of
from batchpipe.model.provider import Batch
from batchpipe.model.records import JOB, Counts, Problem, Stage
from batchpipe.store import ShardLease, Store
from tests.contract.store.protocol import about, advance, claim, due_in, granted, planned, shard

TEN: Limits = {"tokens": 10}


def needs(tokens: int, **others: int) -> dict[Kind, int]:
    return {"tokens": tokens, "batches": 1, "creations": 1, **others}  # type: ignore[dict-item]


def turn(store: Store, job_id: str, index: int = 0, *, epoch: int = 1) -> ShardLease:
    lease: ShardLease = granted(claim(store, job_id, index, Stage.PLANNED, Stage.UPLOADED, Stage.CREATED, epoch=epoch))
    return lease


def ask(store: Store, job_id: str, index: int = 0, tokens: int = 10, limits: Limits = TEN) -> Any:
    """A turn that asks, and parks if it has to wait."""
    lease = turn(store, job_id, index)
    answer = store.admission.admit(lease, needs(tokens), limits)
    if isinstance(answer, Waiting):
        advance(store, lease, Stage.PLANNED, after=600)
    else:
        advance(store, lease, Stage.UPLOADED, file_id=f"file-{index}")
    return answer


def create(store: Store, job_id: str, index: int = 0) -> None:
    lease = turn(store, job_id, index)
    assert not store.leases.record_intent(lease, admitted=True).no_hold
    batch = f"batch_{job_id}_{index}_{lease.shard.try_}"
    store.shards.settle(lease.shard, batch, token=lease.token, after=0, changes={"status": "validating"})


def refuse(store: Store, job_id: str, index: int = 0, limit: int | None = None, kind: Kind = "tokens") -> None:
    """The provider's queue was full: what the poll of a failed batch writes."""
    lease = turn(store, job_id, index)
    spent = [*lease.shard.spent, lease.shard.batch_id]
    changes: Any = {"try_": lease.shard.try_ + 1, "spent": spent, "batch_id": None, "intent_at": None, "status": None}
    advance(store, lease, Stage.UPLOADED, after=600, full=Full(kind=kind, limit=limit), **changes)


def held(store: Store, kind: str = "tokens") -> int:
    return sum(room.held for room in store.admission.rooms("default") if room.kind == kind)


def of_model(store: Store, job_id: str, index: int, model: str) -> None:
    store.connection.client.hset(store.connection.key(job_id, index), "model", model)


def learned(store: Store) -> int | None:
    return next(room.learned for room in store.admission.rooms("default") if room.kind == "tokens")


def end(store: Store, job_id: str, index: int = 0, status: str = "completed") -> None:
    record = shard(store, job_id, index)
    assert record.batch_id is not None
    assert store.shards.record_batch_status(record, record.batch_id, {"status": status})


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


def test_a_shard_that_is_larger_than_the_room_goes_alone(store: Store) -> None:
    """The estimate or the limit may be wrong; it would wait for ever else."""
    assert ask(store, planned(store), tokens=50) == Admitted()


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


# -- what must not keep others from their room -----------------------------------------------------------------------


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
