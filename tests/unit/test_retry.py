"""The pauses between tries."""

from __future__ import annotations

import pytest

from batchpipe.model import retry
from batchpipe.model.records import LONGEST_PAUSE
from batchpipe.model.retry import RetryPolicy

POLICIES = {name: policy for name, policy in vars(retry).items() if isinstance(policy, RetryPolicy)}
PATIENCE = {"FILE_UNFOUND", "QUEUE_STUCK"}  #: these are waited for, they are no countdowns of messages


def test_pauses_double_up_to_the_longest() -> None:
    policy = RetryPolicy(first=1.0, longest=60.0)

    assert [policy.pause(attempt) for attempt in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert policy.pause(10**6) == 60


def test_a_pause_follows_from_the_one_before_it() -> None:
    policy = RetryPolicy(first=5.0, longest=60.0)

    assert [policy.after(last) for last in (0, 5, 10, 20, 40, 60)] == [5, 10, 20, 40, 60, 60]


def test_jitter_spreads_a_pause_to_both_sides() -> None:
    policy = RetryPolicy(first=10.0, longest=60.0, jitter=0.2)

    assert policy.pause(0, lambda low, high: low) == pytest.approx(8.0)
    assert policy.pause(9, lambda low, high: high) == pytest.approx(72.0)
    assert 8.0 <= policy.pause(0) <= 12.0


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - PATIENCE))
def test_no_countdown_outlasts_the_broker(name: str) -> None:
    """A longer one would be delivered again while it waits."""
    policy = POLICIES[name]

    assert 0 < policy.first <= policy.longest <= LONGEST_PAUSE
    assert policy.longest * (1 + policy.jitter) <= LONGEST_PAUSE
