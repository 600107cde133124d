"""A lease that is held: renewed in the background, and lost without mercy."""

from __future__ import annotations

import threading

import pytest

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.model.records import JobRecord
from batchpipe.store import JobLease, Lease, Renewal, host_clock
from batchpipe.store.keeper import Keeper


class Redis:
    """Answers renewals as a test wants, and tells when it was asked."""

    def __init__(self, *answers: float | Exception, news: Renewal | None = None) -> None:
        self.answers = list(answers)
        self.news = news or Renewal()
        self.asked = threading.Semaphore(0)
        self.threads = set[threading.Thread]()

    def renew(self, lease: Lease) -> tuple[float, Renewal]:
        self.threads.add(threading.current_thread())
        answer = self.answers.pop(0) if self.answers else 30.0
        self.asked.release()
        if isinstance(answer, Exception):
            raise answer
        return answer, self.news


class SlowRedis(Redis):
    """Takes a while to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers_now, self.answered = threading.Event(), False

    def renew(self, lease: Lease) -> tuple[float, Renewal]:
        answer = super().renew(lease)
        self.answers_now.wait(5)
        self.answered = True
        return answer


def lease(redis: Redis, seconds: float = 0.15, keeper: Keeper | None = None) -> Lease:
    kept_by = keeper or Keeper()
    return JobLease(renewer=redis, keeper=kept_by, job=JobRecord(id="job_x"), token="token", seconds=seconds)


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
        with held._renewing:  # the answer is noted
            pass
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


def test_one_thread_renews_all_leases() -> None:
    """Also one that is shorter than those before it, and one whose renewal has raised what nobody expects."""
    redis, broken, keeper = Redis(), Redis(RuntimeError("unforeseen"), RuntimeError("again")), Keeper()
    with lease(redis, 60, keeper), lease(broken, 0.15, keeper), lease(redis, 0.15, keeper):
        assert all(broken.asked.acquire(timeout=5) for _ in range(2))
        assert all(redis.asked.acquire(timeout=5) for _ in range(2))
    assert len(redis.threads | broken.threads) == 1


def test_a_lease_that_has_ended_is_renewed_no_more() -> None:
    """Not even if its renewal was about to begin; one that is under way is waited for."""
    redis, keeper = Redis(), Keeper()
    held = lease(redis, 0.15, keeper)
    with held:
        assert redis.asked.acquire(timeout=5)
    held.renew_now()
    assert redis.asked.acquire(blocking=False) is False

    slow = SlowRedis()
    held = lease(slow, 0.15, keeper)
    with held:
        assert slow.asked.acquire(timeout=5)
        threading.Timer(0.05, slow.answers_now.set).start()
    assert slow.answered is True


def test_the_thread_of_renewals_ends_when_there_is_none_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another one begins with the next lease."""
    monkeypatch.setattr("batchpipe.store.keeper.IDLE_SECONDS", 0.01)
    redis, keeper = Redis(), Keeper()
    for _ in range(2):
        with lease(redis, 0.15, keeper):
            assert redis.asked.acquire(timeout=5)
        for thread in redis.threads:
            thread.join(5)
            assert not thread.is_alive()
    assert len(redis.threads) == 2


def test_a_forked_child_renews_its_own_leases() -> None:
    """It has no thread of its parent's, and a lock that one of them held at the fork stays locked."""
    redis, keeper = Redis(), Keeper()
    with lease(redis, 0.15, keeper):
        assert redis.asked.acquire(timeout=5)
        keeper._pid = -1  # as it looks in a child
        keeper._lock.acquire()
        theirs = Redis()
        with lease(theirs, 0.15, keeper):
            assert theirs.asked.acquire(timeout=5)
