"""A lease that is held: renewed in the background, and lost without mercy."""

from __future__ import annotations

import threading

import pytest

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.model.records import JobRecord
from batchpipe.store import JobLease, Lease, Renewal, host_clock


class Redis:
    """Answers renewals as a test wants, and tells when it was asked."""

    def __init__(self, *answers: float | Exception, news: Renewal | None = None) -> None:
        self.answers = list(answers)
        self.news = news or Renewal()
        self.asked = threading.Semaphore(0)

    def renew(self, lease: Lease) -> tuple[float, Renewal]:
        answer = self.answers.pop(0) if self.answers else 30.0
        self.asked.release()
        if isinstance(answer, Exception):
            raise answer
        return answer, self.news


def lease(redis: Redis, seconds: float = 0.15) -> Lease:
    return JobLease(renewer=redis, job=JobRecord(id="job_x"), token="token", seconds=seconds)


def test_a_lease_is_renewed_while_a_step_works() -> None:
    """Three times in its length, so that two renewals may fail."""
    redis = Redis()
    with lease(redis) as held:
        assert all(redis.asked.acquire(timeout=5) for _ in range(4))
        held.check()
    assert held.lost is False


def test_a_renewal_brings_the_news_that_the_job_is_cancelled() -> None:
    """A transfer under way looks at it."""
    redis = Redis(news=Renewal(cancel=True))
    with lease(redis) as held:
        redis.asked.acquire(timeout=5)
        redis.asked.acquire(timeout=5)  # the second is asked after the first was noted
        assert held.news.cancel is True


def test_a_lease_that_redis_refuses_is_lost() -> None:
    """Somebody else may be working on it."""
    redis = Redis(LeaseLost())
    held = lease(redis)
    with held:
        assert redis.asked.acquire(timeout=5)
        assert held._thread is not None
        held._thread.join(5)
        with pytest.raises(LeaseLost):
            held.check()
    assert held.too_late_to_call() is True


def test_a_blip_of_redis_costs_no_lease() -> None:
    """The next renewal makes it good."""
    redis = Redis(StoreUnavailable("blip"))
    with lease(redis) as held:
        assert all(redis.asked.acquire(timeout=5) for _ in range(3))
        held.check()


def test_who_is_thawed_late_neither_calls_nor_writes() -> None:
    """Its own clock is enough to know, without asking anybody."""
    held = lease(Redis(), seconds=60)
    held.confirmed = host_clock() - 31
    held.check()
    assert held.too_late_to_call() is True
    held.confirmed = host_clock() - 61
    with pytest.raises(LeaseLost):
        held.check()


def test_near_its_deadline_a_lease_is_shorter() -> None:
    """A renewal beyond the stage's own deadline grants what is left of it, and never more than a lease."""
    redis = Redis(0.05, 99.0)
    with lease(redis) as held:
        assert all(redis.asked.acquire(timeout=5) for _ in range(3))
        assert held.seconds == 0.05


def test_a_check_renews_a_lease_that_nothing_else_renews() -> None:
    """Green threads stand still while one of them reads a file: what it calls meanwhile keeps its lease."""
    redis = Redis()
    held = lease(redis, seconds=30)
    held.check()
    assert redis.asked.acquire(blocking=False) is False
    held.confirmed = held._renewal_began = host_clock() - 16
    held.check()
    held.check()
    assert redis.asked.acquire(blocking=False) is True
    assert redis.asked.acquire(blocking=False) is False
    assert held.age() < 15


def test_a_check_finds_out_that_the_lease_is_lost() -> None:
    held = lease(Redis(LeaseLost()), seconds=30)
    held.confirmed = held._renewal_began = host_clock() - 16
    with pytest.raises(LeaseLost):
        held.check()


def test_a_check_asks_a_silent_redis_now_and_then_only() -> None:
    """Each question to it may take seconds."""
    redis = Redis(StoreUnavailable("away"), StoreUnavailable("away"))
    held = lease(redis, seconds=30)
    held.confirmed = held._renewal_began = host_clock() - 16
    for _ in range(5):
        held.check()
    assert len(redis.answers) == 1
    assert held.take_progress() is True  # is said again


def test_that_the_work_gets_on_is_said_once_for_each_renewal() -> None:
    held = lease(Redis(), seconds=30)
    assert held.take_progress() is False
    held.check()
    assert [held.take_progress(), held.take_progress()] == [True, False]
