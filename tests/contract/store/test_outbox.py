"""Notifications that are to be sent; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

from batchpipe.model.notifications import GIVE_UP_SECONDS, TOLD_AGAIN_SECONDS, Notification
from batchpipe.store import Store
from batchpipe.store import outbox as module
from batchpipe.store.outbox import Undelivered


def note(number: int = 1, once: str = "") -> Notification:
    return Notification(
        id=f"msg_{number}", once=once, type="job.ended", target="ops", account="default", job="job_1", body="{}"
    )


def take(store: Store) -> list[Notification]:
    """All that are due."""
    found = [store.outbox.take(one.id) for one in store.outbox.due(100)]
    return [one for one in found if one is not None]


def test_the_same_news_is_recorded_once_also_after_it_was_delivered(store: Store) -> None:
    """A turn that dies and is taken again records it again."""
    assert store.outbox.add(note()) == "ok"
    assert store.outbox.add(note()) == "known"
    [taken] = take(store)
    assert (taken.id, taken.body, taken.tries) == ("msg_1", "{}", 0)
    store.outbox.delivered("msg_1")
    assert store.outbox.add(note()) == "known"
    assert store.outbox.counts() == (0, 0)


def test_what_is_told_once_in_six_hours_is_not_told_again_before_that(store: Store, clock: Any) -> None:
    """Six hours from when it was told, not from the last quarter of the day on; under an id of its own each time."""
    clock.advance(TOLD_AGAIN_SECONDS - store.now() % TOLD_AGAIN_SECONDS - 60)  # a minute before such a quarter ends
    assert store.outbox.add(note(1, "a")) == "ok"
    clock.advance(120)
    assert store.outbox.add(note(2, "a")) == "known"
    assert store.outbox.add(note(3, "b")) == "ok"
    clock.advance(TOLD_AGAIN_SECONDS - 121)
    assert store.outbox.add(note(4, "a")) == "known"
    clock.advance(2)
    assert store.outbox.add(note(5, "a")) == "ok"


def test_what_a_sender_has_taken_is_his_until_he_counts_as_dead(store: Store, clock: Any) -> None:
    """Then another one sends it: at least once."""
    store.outbox.add(note())
    assert len(take(store)) == 1
    assert (take(store), store.outbox.take("msg_1"), store.outbox.is_due()) == ([], None, False)
    clock.advance(module.SENDING_SECONDS + 1)
    assert store.outbox.is_due()
    assert len(take(store)) == 1


def test_those_that_are_due_are_shown_without_being_taken(store: Store) -> None:
    """So that those who cannot send them leave them to others; bodies are read by the one who sends."""
    store.outbox.add(note())
    store.connection.call("zadd", f"{store.connection.prefix}outbox", {"msg_gone": 1.0})
    for _ in range(2):
        [seen] = store.outbox.due(10)
        assert (seen.id, seen.target, seen.body) == ("msg_1", "ops", "")
    assert store.outbox.counts() == (1, 0)


def test_one_worker_is_asked_to_send_what_is_due_however_many_sweeps_see_it(store: Store) -> None:
    """Each message costs a worker a look."""
    assert [store.outbox.may_ask(queue) for queue in ("one", "one", "other")] == [True, False, True]


def test_one_that_fails_is_tried_again_for_a_day_and_then_listed_as_dead(store: Store, clock: Any) -> None:
    """And it can be sent again by hand, for another day."""
    store.outbox.add(note())
    lives, tries = True, 0
    while lives:
        [taken] = take(store)
        tries += 1
        lives = store.outbox.failed(taken.id, "refused", 7_200.0)
        clock.advance(7_201)
    assert 11 <= tries <= 13
    assert tries * 7_200 >= GIVE_UP_SECONDS - 7_200
    [dead] = store.outbox.dead(10)
    assert (dead.tries, dead.error, dead.dead) == (tries, "refused", True)
    assert store.outbox.waiting(10) == []
    assert store.outbox.send_again(["msg_1", "msg_unknown"]) == 1
    assert store.outbox.counts() == (1, 0)
    assert take(store)[0].id == "msg_1"
    assert store.outbox.failed("msg_1", "refused", 60)


def test_what_a_sender_lacks_is_no_try_and_final_only_after_a_day(store: Store, clock: Any) -> None:
    """The reason of a real try is kept, as that says more."""
    store.outbox.add(note(1))
    store.outbox.add(note(2))
    store.outbox.failed("msg_2", "the receiver answered 500", 5)
    for number in (1, 2):
        assert store.outbox.put_off(f"msg_{number}", "no secret", 60)
    found = {one.id: (one.tries, one.error) for one in store.outbox.waiting(10)}
    assert found == {"msg_1": (0, "no secret"), "msg_2": (1, "the receiver answered 500")}
    clock.advance(GIVE_UP_SECONDS - 30)
    assert not store.outbox.put_off("msg_1", "no secret", 60)
    [dead] = store.outbox.dead(10)
    assert (dead.id, dead.tries, dead.error) == ("msg_1", 0, "no secret")


def test_late_words_of_a_dead_sender_change_nothing(store: Store) -> None:
    """It was delivered by another one meanwhile."""
    store.outbox.add(note())
    take(store)
    store.outbox.delivered("msg_1")
    assert store.outbox.failed("msg_1", "late", 5)
    assert store.outbox.counts() == (0, 0)


def test_the_outbox_and_the_dead_are_bounded_and_what_is_dropped_is_counted(store: Store, monkeypatch: Any) -> None:
    """A receiver that is away for long must not fill Redis; that others are told nothing meanwhile must show."""
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    monkeypatch.setattr(module, "MOST_DEAD", 2)
    assert [store.outbox.add(note(number)) for number in range(4)] == ["ok", "ok", "ok", "full"]
    assert (store.outbox.counts().full, Undelivered(2, 0).full) == (True, False)
    assert store.counters.read() == {'["notifications_dropped"]': 1.0}
    for number in range(3):
        store.outbox.give_up(f"msg_{number}", "no")
    assert len(store.outbox.dead(10)) == 2
    assert store.connection.call("exists", f"{store.connection.prefix}notification:msg_0") == 0
