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
    """A burst first, then so many in a second, over all workers."""

    def take() -> float:
        return store.accounts.take_rate_token("default", per_second=0.5, burst=2)

    assert [take(), take()] == [0, 0]
    assert take() == pytest.approx(2, abs=0.5)
    assert store.accounts.take_rate_token("other", per_second=0.5, burst=2) == 0
    clock.advance(2)
    assert take() == 0
    assert take() > 0
    clock.advance(3600)
    assert [take(), take(), take() > 0] == [0, 0, True]


def test_accounts_that_create_calls_are_made_on_are_remembered(store: Store, clock: Any) -> None:
    """Only there can orphans be."""
    job_id = uploaded(store, account="team")
    assert store.accounts.creating(0) == []
    store.leases.record_intent(granted(claim(store, job_id, 0, Stage.UPLOADED)))
    assert store.accounts.creating(store.now() - 10) == ["team"]
    clock.advance(100)
    assert store.accounts.creating(store.now() - 10) == []
