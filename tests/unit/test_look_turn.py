"""The turn of a process to look at an account, renewed in the background."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.pipeline.look_turn import LookTurn
from batchpipe.pipeline.looks import LEASE_SECONDS
from batchpipe.store import Store
from batchpipe.store.looks import Looks


class Told:
    """Counts renewals; each answers with the next of ``answers``, then with nothing."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.renewed = threading.Semaphore(0)

    def renew(self, account: str, token: str, *, lease: float) -> None:
        self.renewed.release()
        if self.answers:
            raise self.answers.pop(0)


def turn(told: Told, *, patience: float = 60.0) -> LookTurn:
    return LookTurn(cast(Looks, told), "default", lease=0.03, patience=patience)


def test_a_turn_is_kept_while_a_page_is_on_its_way() -> None:
    """Also through a moment in which Redis does not answer."""
    told = Told(StoreUnavailable("away"))
    with turn(told):
        for _ in range(3):
            assert told.renewed.acquire(timeout=20)


@pytest.mark.parametrize("why", ["lost", "no page for long"])
def test_a_turn_is_no_longer_kept(why: str) -> None:
    """Another process looks by now; or an answer does not end."""
    told = Told(LeaseLost()) if why == "lost" else Told()
    kept = turn(told, patience=60.0 if why == "lost" else 0.0)
    with kept:
        kept._thread.join(timeout=20)
        assert not kept._thread.is_alive()
    assert told.renewed.acquire(blocking=False) is (why == "lost")


def test_a_look_that_died_is_soon_followed_by_the_next(store: Store, clock: Any) -> None:
    """It does not stand in the way for as long as an answer of the provider may take."""
    looks = store.looks
    died = LookTurn(looks, "default", lease=LEASE_SECONDS, patience=150.0)
    assert died.begin(every=0.0) is not None
    another = LookTurn(looks, "default", lease=LEASE_SECONDS, patience=150.0)
    assert another.begin(every=0.0) is None
    clock.advance(LEASE_SECONDS + 1)
    assert another.begin(every=0.0) is not None
