"""What a claim answers, and the lease that is held and kept alive while a step works."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.model.records import JobRecord, ShardRecord

logger = logging.getLogger(__name__)

#: Between two renewals; near a stage's deadline they grant ever less.
_SHORTEST_PAUSE = 0.2
#: No step works for longer without giving way to others.
_LONGEST_STRETCH = 0.5


def host_clock() -> float:
    """Seconds that go on while this machine sleeps or this process is frozen (a suspended laptop is late, too)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class Refused:
    """A claim that was not granted. ``after``: seconds until the lease or the time that stands in the way."""

    why: str  #: gone, epoch, stage, lease or early
    after: float = 0.0


@dataclass(frozen=True)
class Renewal:
    """What a holder learns from each write: somebody wanted to wake it, or the job is being cancelled."""

    wake: bool = False
    cancel: bool = False
    held: bool = False  #: of an intent: it was not recorded, for the job sends nothing more for now, or at all


NO_NEWS = Renewal()


class Renewer(Protocol):
    """The part of the store that a lease needs."""

    def renew(self, lease: Lease) -> tuple[float, Renewal]: ...


@dataclass
class Lease:
    """The right to work on one record. As a context manager it renews itself in the background, and with ``check``
    where that cannot run: green threads (gevent, eventlet) stand still while one of them reads a file.

    It ends at its deadline, unless the work gets on. A renewal that Redis refuses, or that comes too late by our own
    clock, ends it, too: ``check()`` then raises ``LeaseLost``. A frozen process renews nothing, so whoever thaws late
    finds its lease ended.
    """

    store: Renewer
    job: JobRecord
    shard: ShardRecord | None
    token: str
    seconds: float  #: how long it lasts without renewal
    confirmed: float = field(default_factory=host_clock)  #: our clock before the last answer that granted it
    news: Renewal = NO_NEWS
    deadline: float = 0.0  #: seconds without a ``check`` after which it is renewed no more
    overran: bool = False  #: the turn before this one met its deadline
    lost: bool = False
    _got_on: bool = False
    _gave_way: float = field(default_factory=host_clock)
    _asked: float = field(default_factory=host_clock)
    _renewing: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def index(self) -> int:
        return self.shard.index if self.shard is not None else -1

    def age(self) -> float:
        """Seconds since Redis last confirmed this lease, by our own clock."""
        return host_clock() - self.confirmed

    def too_late_to_call(self) -> bool:
        """True when more than half of the lease is gone: a call that costs money must not go out any more."""
        return self.lost or self.age() > self.seconds / 2

    def check(self) -> None:
        """Say that the work gets on: a step calls it as bytes or rows go by. Raises LeaseLost if this lease has ended.

        Cheap: a call goes out only where the renewals in the background have not come to it.
        """
        self._raise_if_lost()
        self._got_on = True
        now = host_clock()
        if now - self._gave_way > _LONGEST_STRETCH:
            self._gave_way = now
            time.sleep(0)  # to other green threads, their renewals among them
        if min(self.age(), now - self._asked) > self.seconds / 2 and not self._stop.is_set():
            self._renew()
            self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self.lost or self.age() > self.seconds:
            raise LeaseLost

    def has_got_on(self) -> bool:
        """Whether ``check`` was called since the last renewal. Asked by that, once."""
        got_on, self._got_on = self._got_on, False
        return got_on

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name=f"lease-{self.job.id}/{self.index}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the renewals, before the turn is ended in Redis."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _keep(self) -> None:
        while not self.lost and not self._stop.wait(max(self.seconds / 3, _SHORTEST_PAUSE)):
            self._renew()

    def _renew(self) -> None:
        if not self._renewing.acquire(blocking=False):
            return  # the other is at it
        try:
            self._asked = before = host_clock()
            self.seconds, self.news = self._renewed()
            self.confirmed = before
        except StoreUnavailable as error:
            self._got_on = True  # what was not heard is said again
            job = self.job
            ids = {"event": "lease_not_renewed", "job": job.id, "shard": self.index, "account": job.account}
            logger.warning("lease not renewed: %s", error, extra=ids)
        except LeaseLost:
            self.lost = True
        finally:
            self._renewing.release()

    def _renewed(self) -> tuple[float, Renewal]:
        left, news = self.store.renew(self)
        # near the stage's own deadline a renewal grants less than a lease; it never becomes longer than one
        return min(self.seconds, left), news
