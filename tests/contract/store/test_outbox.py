"""Notifications that are to be sent; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

from batchpipe.model.notifications import GIVE_UP_SECONDS, Notification
from batchpipe.store import Store
from batchpipe.store import outbox as module


def note(number: int = 1) -> Notification:
    return Notification(id=f"msg_{number}", type="job.ended", target="ops", account="default", job="job_1", body="{}")


def test_the_same_news_is_recorded_once_also_after_it_was_delivered(store: Store) -> None:
    """A turn that dies and is taken again records it again."""
    assert store.outbox.add(note())
    assert not store.outbox.add(note())
    [taken] = store.outbox.take(10)
    assert (taken.id, taken.body, taken.tries) == ("msg_1", "{}", 0)
    store.outbox.delivered("msg_1")
    assert not store.outbox.add(note())
    assert store.outbox.counts() == (0, 0)


def test_what_a_sender_has_taken_is_his_until_he_counts_as_dead(store: Store, clock: Any) -> None:
    """Then another one sends it: at least once."""
    store.outbox.add(note())
    assert len(store.outbox.take(10)) == 1
    assert store.outbox.take(10) == []
    clock.advance(module.SENDING_SECONDS + 1)
    assert len(store.outbox.take(10)) == 1


def test_one_that_fails_is_tried_again_for_a_day_and_then_listed_as_dead(store: Store, clock: Any) -> None:
    """And it can be sent again by hand, for another day."""
    store.outbox.add(note())
    lives, tries = True, 0
    while lives:
        [taken] = store.outbox.take(10)
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
    assert store.outbox.take(10)[0].id == "msg_1"
    assert store.outbox.failed("msg_1", "refused", 60)


def test_late_words_of_a_dead_sender_change_nothing(store: Store) -> None:
    """It was delivered by another one meanwhile."""
    store.outbox.add(note())
    store.outbox.take(10)
    store.outbox.delivered("msg_1")
    assert store.outbox.failed("msg_1", "late", 5)
    assert store.outbox.counts() == (0, 0)


def test_the_outbox_and_the_dead_are_bounded(store: Store, monkeypatch: Any) -> None:
    """A receiver that is away for long must not fill Redis."""
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    monkeypatch.setattr(module, "MOST_DEAD", 2)
    assert [store.outbox.add(note(number)) for number in range(4)] == [True, True, True, False]
    for number in range(3):
        store.outbox.give_up(f"msg_{number}", "no")
    assert len(store.outbox.dead(10)) == 2
    assert store.connection.call("exists", f"{store.connection.prefix}notification:msg_0") == 0
