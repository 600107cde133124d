"""What workers share about an account; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any

import pytest

from batchpipe.model.records import Problem, Stage
from batchpipe.store import Store
from tests.contract.store.protocol import (
    about,
    claim,
    granted,
    uploaded,
)


def test_a_paused_account_tells_why_until_it_is_resumed(store: Store) -> None:
    """Another account goes on."""
    assert store.accounts.pause_of("default") is None
    store.accounts.pause("default", 100, Problem(code="insufficient_quota", message="no money"))
    pause = store.accounts.pause_of("default")
    assert pause is not None
    assert (pause.code, pause.message, pause.seconds) == ("insufficient_quota", "no money", about(100))
    assert store.accounts.pause_of("other") is None
    assert store.accounts.resume("default")
    assert not store.accounts.resume("default")
    assert store.accounts.pause_of("default") is None


def test_rate_tokens_are_spent_and_refilled(store: Store, clock: Any) -> None:
    """A burst first, then so many in a second, over all workers; each read that finds none has a slot of its own."""

    def take(what: str = "poll") -> float:
        verdict, wait = store.accounts.take_rate_token("default", per_second=1.0, what=what)
        assert verdict == "slot"
        return wait

    assert [take(), take()] == [0, 0]
    assert [take(), take(), take()] == pytest.approx([1, 2, 3], abs=0.5)
    assert store.accounts.take_rate_token("other", per_second=1.0) == ("slot", 0)
    clock.advance(4)
    assert take() == 0
    assert take() == pytest.approx(1, abs=0.5)
    clock.advance(3600)
    assert [take(), take(), take() > 0] == [0, 0, True]


def test_no_slot_is_further_away_than_a_message_may_wait(store: Store) -> None:
    """Whoever finds none asks again then; what is booked stays booked."""
    taken = [store.accounts.take_rate_token("default", per_second=0.1) for _ in range(80)]
    assert {verdict for verdict, _ in taken} == {"slot", "full"}
    assert max(wait for verdict, wait in taken if verdict == "slot") <= 600
    assert taken[-1] == ("full", 600.0)


def test_pages_of_a_look_come_before_what_polls_have_booked(store: Store) -> None:
    """At the same pace among themselves; and each of them moves the slots of later polls on."""
    for _ in range(30):
        store.accounts.take_rate_token("default", per_second=1.0)
    looks = [store.accounts.take_rate_token("default", per_second=1.0, what="look")[1] for _ in range(3)]
    assert looks == pytest.approx([0, 1, 2], abs=0.5)
    assert store.accounts.take_rate_token("default", per_second=1.0)[1] == pytest.approx(32, abs=1)


def test_news_is_read_at_once_and_paid_for_later(store: Store) -> None:
    """It counts against the same budget; a booked slot costs nothing more."""
    assert {store.accounts.take_rate_token("default", per_second=1.0, what="news") for _ in range(20)} == {("slot", 0)}
    wait = store.accounts.take_rate_token("default", per_second=1.0)[1]
    assert wait == pytest.approx(19, abs=1)
    assert store.accounts.take_rate_token("default", per_second=1.0, what="booked") == ("slot", 0)
    assert store.accounts.take_rate_token("default", per_second=1.0)[1] == pytest.approx(wait + 1, abs=0.5)


def test_accounts_that_create_calls_are_made_on_are_remembered(store: Store, clock: Any) -> None:
    """Only there can orphans be."""
    job_id = uploaded(store, account="team")
    assert store.accounts.creating(0) == []
    store.leases.record_intent(granted(claim(store, job_id, 0, Stage.UPLOADED)))
    assert store.accounts.creating(store.now() - 10) == ["team"]
    clock.advance(100)
    assert store.accounts.creating(store.now() - 10) == []
