"""Looks at the batches of an account: whose turn it is, what a page changes, parked shards; on both kinds of Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.provider import Batch
from batchpipe.model.records import BatchError, Counts, ShardRecord, Stage
from batchpipe.store import Store
from batchpipe.store import looks as looks_module
from batchpipe.store.looks import PageSeen
from tests.contract.store.protocol import about, advance, claim, due_in, granted, shard, uploaded

NET = 600.0


def in_flight(store: Store, count: int = 1, **fields: Any) -> str:
    """A job whose shards have batches that live: batch_0 ..; their next polls are a minute away."""
    job_id = uploaded(store, count, **fields)
    for index in range(count):
        lease = granted(claim(store, job_id, index, Stage.UPLOADED))
        store.leases.record_intent(lease)
        changes = {"status": "validating", "counts": Counts(), "snapshot_at": store.now()}
        assert store.shards.settle(
            lease.shard, f"batch_{index}", token=lease.token, after=60.0, changes=changes
        ).verdict == ("ok")
    return job_id


def parked(store: Store, job_id: str, index: int = 0, *, until: float | None = None, after: float = NET) -> None:
    """Its poll ends without a message."""
    store.connection.client.hset(store.connection.key(job_id, index), "next_at", "0")
    lease = granted(claim(store, job_id, index, Stage.CREATED))
    advance(store, lease, Stage.CREATED, after, parked=True, park_until=until)


def page(store: Store, *batches: Batch, account: str = "default", every: float = 60.0) -> PageSeen:
    return store.looks.record_page(account, batches, every=every, net=NET)


def alive(index: int = 0, status: str = "in_progress", **fields: Any) -> Batch:
    return Batch(id=f"batch_{index}", status=status, **fields)


def ended(index: int = 0, **fields: Any) -> Batch:
    how = {"status": "completed", "output_file_id": "out", "counts": Counts(total=2, completed=2, failed=0), **fields}
    return Batch(id=f"batch_{index}", **how)


# -- whose turn it is ----------------------------------------------------------------------------------------------


def test_one_process_at_a_time_looks(store: Store, clock: Any) -> None:
    """And not before its time; a repeated call is the same one."""
    begun = store.looks.take("default", "a", lease=120.0, every=0.0)
    assert begun == pytest.approx(store.now(), abs=2)
    assert store.looks.take("default", "b", lease=120.0, every=0.0) is None
    assert store.looks.take("default", "a", lease=120.0, every=0.0) == begun
    assert store.looks.take("other", "b", lease=120.0, every=0.0) is not None
    store.looks.give_up("default", "a")
    assert store.looks.take("default", "b", lease=120.0, every=15.0) is None
    clock.advance(16)
    assert store.looks.take("default", "b", lease=120.0, every=15.0) is not None


def test_the_lease_of_a_look_ends_by_itself(store: Store, clock: Any) -> None:
    """Whoever had it writes nothing any more."""
    begun = store.looks.take("default", "a", lease=120.0, every=0.0)
    assert begun is not None
    clock.advance(100)
    store.looks.renew("default", "a", lease=120.0)
    clock.advance(100)
    store.looks.renew("default", "a", lease=150.0)
    clock.advance(151)
    with pytest.raises(LeaseLost):
        store.looks.renew("default", "a", lease=120.0)
    assert store.looks.take("default", "b", lease=120.0, every=0.0) is not None
    with pytest.raises(LeaseLost):
        store.looks.end("default", "a", begun=begun, good=60.0, ranks=[], read_at=None)
    assert store.looks.state("default").until == 0


def test_a_look_remembers_what_it_has_learned(store: Store) -> None:
    """A repeated end changes nothing; one that has watched says until when polls may be parked."""
    begun = store.looks.take("default", "a", lease=120.0, every=0.0) or 0.0
    for _ in range(2):
        store.looks.end("default", "a", begun=begun, good=60.0, ranks=[[9.0, 5.0, 40.0, 60.0]], read_at=begun)
    store.looks.note_whole("default", begun, calls=7, done=True)
    state = store.looks.state("default")
    assert (state.begun, state.done, state.looked, state.whole, state.calls) == (begun, begun, begun, begun, 7)
    assert state.until - store.now() == about(60)
    assert (state.ranks, state.ranks_read_at) == ([[9.0, 5.0, 40.0, 60.0]], begun)


def test_those_in_flight_come_newest_first_by_the_thousand(store: Store) -> None:
    """Without one being left out or met twice."""
    made = {f"job_x/{number}": float(number) for number in range(2_345)}
    store.connection.client.zadd(f"{store.connection.prefix}inflight:default", made)
    assert list(store.looks.in_flight("default")) == sorted(made.items(), key=lambda item: -item[1])
    assert store.looks.state("default").in_flight == 2_345


def test_ends_that_leave_while_the_shards_in_flight_are_read_hide_none_of_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read some at a time, by their place: each that had left by then hid another one until the next look.
    Providers count in seconds, so very many have the same time.
    """
    monkeypatch.setattr(looks_module, "_AT_ONCE", 10)
    made = {f"job_x/{index}": 1_000.0 + index // 35 for index in range(100)}
    client, key = store.connection.client, f"{store.connection.prefix}inflight:default"
    client.zadd(key, made)
    wanted = sorted(made.items(), key=lambda item: (item[1], item[0]), reverse=True)
    assert list(store.looks.in_flight("default")) == wanted

    read = []
    for member, at in store.looks.in_flight("default"):
        read.append((member, at))
        client.zrem(key, member)
    assert read == wanted


def test_a_shard_whose_record_is_no_more_is_not_in_flight(store: Store) -> None:
    """Somebody has deleted it; those that are there stay."""
    job_id = in_flight(store, 2)
    store.connection.client.delete(store.connection.key(job_id, 1))
    for index in range(2):
        store.looks.forget_if_gone("default", f"{job_id}/{index}")
    assert [member for member, _ in store.looks.in_flight("default")] == [f"{job_id}/0"]


# -- what a page changes -------------------------------------------------------------------------------------------


def test_a_changed_status_is_written_at_once_and_counts_once_a_minute(store: Store, clock: Any) -> None:
    """Whoever watches sees each."""
    job_id = in_flight(store)
    counts = Counts(total=9, completed=4, failed=1)
    page(store, alive(counts=Counts(total=9)))
    assert (shard(store, job_id).status, shard(store, job_id).counts) == ("in_progress", Counts(total=9))
    page(store, alive(counts=counts))
    assert shard(store, job_id).counts == Counts(total=9)
    clock.advance(61)
    page(store, alive(counts=counts))
    seen = shard(store, job_id)
    assert (seen.counts, seen.snapshot_at) == (counts, about(store.now()))
    store.looks.note_watched("default")
    page(store, alive(counts=Counts(total=9, completed=9)))
    assert shard(store, job_id).counts == Counts(total=9, completed=9)


def test_a_page_tells_which_batches_are_known_and_which_shards_were_met(store: Store) -> None:
    """Batches of others, of other accounts, and of shards that have another one, are neither."""
    job_id = in_flight(store, 3)
    other = in_flight(store, 1, account="other")  # its batch has the same id as one of ours
    store.connection.client.set(f"{store.connection.prefix}batch:batch_9", f"{job_id}/1")
    store.connection.client.set(f"{store.connection.prefix}batch:odd", "no member")
    store.connection.client.set(f"{store.connection.prefix}batch:batch_0", f"{job_id}/0")
    seen = page(store, alive(0), Batch(id="batch_x"), alive(2), alive(9), Batch(id="odd"))
    assert seen == (frozenset({"batch_0", "batch_2"}), {f"{job_id}/0", f"{job_id}/2"}, [], [])
    assert page(store, alive(0), account="other") == (frozenset(), set(), [], [])
    assert shard(store, other).status == "validating"


def test_an_end_is_recorded_with_its_files_and_makes_its_shard_due(store: Store) -> None:
    """Told again by each look until it is published: the caller may have died in between."""
    job_id = in_flight(store)
    errors = [BatchError(code="x", line=3)]
    for _ in range(3):
        seen = page(store, ended(errors=errors, error_file_id="err"))
        assert (seen.wake, seen.met) == ([(job_id, 0)], {f"{job_id}/0"})
        assert due_in(store, job_id, 0) == about(0)
    found = shard(store, job_id)
    assert (found.status, found.output_file_id, found.error_file_id) == ("completed", "out", "err")
    assert (found.end_seen, found.errors, found.over_at) == (True, errors, about(store.now()))
    assert store.due.bump_epoch(job_id, 0, ["p"], when="waiting") is not None
    assert page(store, ended()).wake == []  # its message is under way


def test_an_end_with_very_many_errors_is_left_to_its_own_shard(store: Store) -> None:
    """A page has room for a hundred batches."""
    job_id = in_flight(store)
    page(store, ended(status="failed", errors=[BatchError(line=line) for line in range(101)]))
    found = shard(store, job_id)
    assert (found.status, found.end_seen, found.errors) == ("failed", False, [])


def test_a_final_status_is_never_replaced(store: Store) -> None:
    """Lists lag, and so does what a turn has read before."""
    job_id = in_flight(store)
    store.connection.client.hset(store.connection.key(job_id, 0), "next_at", "0")
    lease = granted(claim(store, job_id, 0, Stage.CREATED))
    page(store, ended())
    assert page(store, alive()).wake == []  # the turn under way is told
    news, _ = advance(store, lease, Stage.CREATED, 60.0, status="in_progress", counts=Counts(total=2, completed=1))
    assert news.republish
    page(store, alive())
    found = shard(store, job_id)
    assert (found.status, found.counts) == ("completed", Counts(total=2, completed=2, failed=0))
    assert due_in(store, job_id, 0) == about(60)


def test_a_shard_that_waits_for_late_files_is_left_to_itself(store: Store) -> None:
    """It knows of the end, and has a pace of its own."""
    job_id = in_flight(store)
    page(store, ended())
    key = store.connection.key(job_id, 0)
    store.connection.client.hset(key, mapping={"late_at": str(store.now()), "next_at": str(store.now() + 30)})
    assert page(store, ended()).wake == []


def test_a_shard_that_went_on_is_not_touched(store: Store) -> None:
    """It is recorded as the batch's, so it is no orphan either."""
    job_id = in_flight(store)
    store.connection.client.hset(store.connection.key(job_id, 0), "next_at", "0")
    advance(store, granted(claim(store, job_id, 0, Stage.CREATED)), Stage.ENDED, status="completed")
    before = shard(store, job_id)
    assert page(store, alive(), ended()) == (frozenset({"batch_0"}), set(), [], [])
    assert shard(store, job_id) == before


def test_somebody_elses_cancel_wakes_the_shard_once_it_waits(store: Store) -> None:
    """Until it was said; and not where we have asked for it."""
    job_id = in_flight(store)
    assert page(store, alive(status="cancelling")).wake == [(job_id, 0)]
    assert page(store, alive(status="cancelling")).wake == [(job_id, 0)]
    key = store.connection.key(job_id, 0)
    for field in ("cancelled_elsewhere", "cancel_sent"):
        store.connection.client.hset(key, field, "1")
        assert page(store, alive(status="cancelling")).wake == []
        store.connection.client.hdel(key, field)
    store.jobs.cancel(job_id)
    assert page(store, alive(status="cancelling")).wake == []


def test_a_record_that_cannot_be_read_does_not_stop_the_page(store: Store) -> None:
    """The others on it are seen."""
    job_id = in_flight(store, 2)
    key = store.connection.key(job_id, 0)
    store.connection.client.delete(key)
    store.connection.client.set(key, "no hash")
    assert page(store, ended(0), ended(1)).wake == [(job_id, 1)]


# -- parked shards -------------------------------------------------------------------------------------------------


def waits(store: Store, job_id: str) -> ShardRecord:
    [message] = store.queues.waiting([(job_id, 0)])
    assert message is None, "a parked shard has no message"
    found = shard(store, job_id)
    assert found.parked
    return found


def test_a_parked_shard_has_no_message_and_is_due_at_its_safety_net(store: Store) -> None:
    """Without the margin for a message that is late: none is on its way."""
    job_id = in_flight(store)
    parked(store, job_id)
    assert due_in(store, job_id, 0) == about(NET)
    assert waits(store, job_id).next_at - store.now() == about(NET)


def test_a_parked_shard_takes_little_room_and_lives_as_long_as_before(store: Store) -> None:
    """Nothing of it is lost but the ids of its messages."""
    job_id = in_flight(store)
    key = store.connection.key(job_id, 0)
    store.connection.client.hset(key, "task_ids", f'["{"x" * 100}"]')
    store.connection.client.expire(key, 1_000)
    before = shard(store, job_id)
    parked(store, job_id)
    after = shard(store, job_id)
    kept = {"next_at", "wait", "parked", "epoch", "pubs", "task_ids", "snapshot_at"}
    same = [name for name in before.__struct_fields__ if name not in kept]
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert after.task_ids == []
    assert 0 < int(store.connection.client.ttl(key)) <= 1_000
    assert store.connection.client.persist(key)


def test_a_look_that_met_it_alive_moves_the_safety_net_on(store: Store, clock: Any) -> None:
    """A few times an hour suffice; never beyond the time at which a poll must judge it."""
    job_id = in_flight(store)
    parked(store, job_id, until=store.now() + 1_000)
    clock.advance(200)
    page(store, alive())
    assert due_in(store, job_id, 0) == about(400)
    clock.advance(200)
    page(store, alive())
    moved = due_in(store, job_id, 0)
    assert moved is not None
    assert 470 <= moved <= 601
    clock.advance(320)
    page(store, alive())
    assert due_in(store, job_id, 0) == about(280)
    clock.advance(200)
    page(store, alive())
    assert due_in(store, job_id, 0) == about(80)
    waits(store, job_id)


def test_an_end_wakes_a_parked_shard(store: Store) -> None:
    """It is published under a new epoch, and has a message again."""
    job_id = in_flight(store)
    parked(store, job_id)
    assert page(store, ended()).wake == [(job_id, 0)]
    assert store.due.overdue() == [(job_id, 0)]
    waits(store, job_id)
    new = store.due.bump_epoch(job_id, 0, ["p"], when="waiting")
    assert new is not None
    assert not shard(store, job_id).parked
    assert store.queues.waiting([(job_id, 0)]) != [None]


@pytest.mark.parametrize("when", ["waiting", "always"])
def test_whoever_publishes_again_reaches_a_parked_shard(store: Store, when: Any) -> None:
    """A cancel, a resume, the end of a hold, a landing."""
    job_id = in_flight(store)
    parked(store, job_id)
    assert store.due.bump_epoch(job_id, 0, ["p"], when="overdue") is None
    assert store.due.bump_epoch(job_id, 0, ["p"], when=when) is not None
    assert granted(claim(store, job_id, 0, Stage.CREATED, epoch=2))
    assert not shard(store, job_id).parked


def test_a_message_of_old_that_comes_to_a_parked_shard_ends(store: Store) -> None:
    """It was delivered twice."""
    job_id = in_flight(store)
    parked(store, job_id)
    assert claim(store, job_id, 0, Stage.CREATED).why == "early"


def test_a_shard_that_somebody_wanted_meanwhile_is_not_parked(store: Store) -> None:
    """Its holder publishes it."""
    job_id = in_flight(store)
    store.connection.client.hset(store.connection.key(job_id, 0), "next_at", "0")
    lease = granted(claim(store, job_id, 0, Stage.CREATED))
    assert store.due.bump_epoch(job_id, 0, ["p"]) is None
    news, _ = advance(store, lease, Stage.CREATED, NET, parked=True)
    assert news.republish
    assert not shard(store, job_id).parked


def may_park(store: Store, seen: float, most: int = 2) -> bool:
    return store.accounts.take_rate_token("default", per_second=5.0, park=(most, seen))[0] == "parked"


def test_polls_are_parked_while_looks_watch_more_than_a_few(store: Store, clock: Any) -> None:
    """And have met this one of late: one that they do not meet is read by itself."""
    in_flight(store, 3)
    assert not may_park(store, store.now())
    begun = store.looks.take("default", "a", lease=120.0, every=0.0) or 0.0
    store.looks.end("default", "a", begun=begun, good=60.0, ranks=[], read_at=None)
    assert may_park(store, store.now())
    assert may_park(store, begun - 80)
    assert not may_park(store, begun - 100)
    assert not may_park(store, store.now(), most=3)
    clock.advance(61)
    assert not may_park(store, store.now())
