"""What a claim returns, and the lease that is held and kept alive while a step works."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.model.admission import Kind, Limits
from batchpipe.model.records import JOB, JobRecord, Move, Record, ShardRecord
from batchpipe.model.stats import Pause
from batchpipe.store.keeper import Keeper

logger = logging.getLogger(__name__)

#: Seconds between two renewals; near a stage's deadline each grants less.
_SHORTEST_PAUSE = 0.2
#: The longest that a step works without letting other green threads run.
_LONGEST_STRETCH = 0.5


def host_clock() -> float:
    """A clock in seconds that runs on while this machine is suspended or this process is frozen."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class ClaimDenied:
    """A claim that was not granted. ``after``: seconds until the other lease ends or its time has come."""

    why: str  #: gone, epoch, stage, lease or early
    after: float = 0.0


@dataclass(frozen=True)
class Renewal:
    """What a holder learns from each write: it is to publish again, or the job is being cancelled."""

    republish: bool = False
    cancel: bool = False
    held: bool = False  #: for an intent: it was not recorded, because the job sends nothing more for now, or at all
    no_hold: bool = False  #: for an intent: it was not recorded, because the shard holds no room at the provider
    granted: int = 0  #: for the end of a turn: shards that were granted room by it, and are to be published


NO_NEWS = Renewal()


@dataclass(frozen=True)
class Following:
    """The turn that a visit takes next: it is claimed by the script that ends the turn before."""

    stages: tuple[str, ...]
    deadline: float  #: as for a claim


@dataclass(frozen=True)
class RoomWanted:
    """What a shard needs at the provider, and the limits there, by kind: see ``Admission.admit``."""

    needs: Mapping[Kind, int]
    limits: Limits


def news_of(republish: Any, cancel: Any) -> Renewal:
    """What a script returns of it: 0 or 1 each."""
    return Renewal(republish=bool(int(republish)), cancel=bool(int(cancel)))


class Renewer(Protocol):
    """The part of the store that keeps a lease."""

    def renew(self, lease: Lease) -> tuple[float, Renewal]: ...


@dataclass(kw_only=True)
class Lease(ABC):
    """The right to work on one record. As a context manager it is renewed in the background by its ``keeper``, and in
    ``check`` if that cannot run: green threads (gevent, eventlet) are blocked while one of them reads a file.

    It ends at its deadline, unless the work makes progress. A renewal that Redis refuses, or that comes too late by
    our own clock, ends it, too: ``check()`` then raises ``LeaseLost``. A frozen process renews nothing, so one that
    resumes too late finds its lease ended.
    """

    renewer: Renewer
    keeper: Keeper = field(default_factory=Keeper)
    job: JobRecord
    token: str
    seconds: float  #: how long it lasts without renewal
    confirmed: float = field(default_factory=host_clock)  #: our clock before the last call that granted it
    news: Renewal = NO_NEWS
    deadline: float = 0.0  #: seconds without a ``check`` after which it is no longer renewed
    pause: Pause | None = None  #: of its account, when it was claimed
    overran: bool = False  #: the turn before this one ran into its deadline
    lost: bool = False
    following: Lease | None = None  #: the lease for the next turn of this visit, once this turn has ended
    _progressed: bool = False
    _yielded_at: float = field(default_factory=host_clock)
    _renewal_began: float = field(default_factory=host_clock)
    _pause_began: float = field(default_factory=host_clock)
    _renewing: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    @property
    @abstractmethod
    def index(self) -> int:
        """The index of its shard, or ``JOB``."""

    @property
    @abstractmethod
    def record(self) -> Record:
        """What it holds."""

    def age(self) -> float:
        """Seconds since Redis last confirmed this lease, by our own clock."""
        return host_clock() - self.confirmed

    def too_late_to_call(self) -> bool:
        """True if more than half of the lease is gone: a call that costs money must not be sent any more."""
        return self.lost or self.age() > self.seconds / 2

    def check(self) -> None:
        """Report progress: a step calls this as bytes or rows go by. Raises LeaseLost if this lease has ended.

        Cheap: it calls Redis only if the renewals in the background have not run.
        """
        self._raise_if_lost()
        self._progressed = True
        now = host_clock()
        if now - self._yielded_at > _LONGEST_STRETCH:
            self._yielded_at = now
            time.sleep(0)  # let other green threads run, including their renewals
        if min(self.age(), now - self._renewal_began) > self.seconds / 2 and not self._stopped:
            self._renew()
            self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self.lost or self.age() > self.seconds:
            raise LeaseLost

    def take_progress(self) -> bool:
        """Whether ``check`` was called since the last renewal. Called once by each renewal."""
        progressed, self._progressed = self._progressed, False
        return progressed

    def __enter__(self) -> Self:
        self._pause_began = host_clock()
        self.keeper.keep(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the renewals, before the turn is ended in Redis."""
        self._stopped = True
        self.keeper.let_go(self)
        with self._renewing:  # one that is under way has its answer
            pass

    def until_renewal(self) -> float:
        """Seconds until it is to be renewed in the background."""
        return self._pause_began + max(self.seconds / 3, _SHORTEST_PAUSE) - host_clock()

    def renew_now(self) -> None:
        """Renew it, unless that is under way or its turn ends. Raises nothing."""
        try:
            self._renew()
        except Exception:  # it must not keep the other leases from theirs; this one is renewed by `check`, or ends
            logger.exception("lease not renewed", extra=self._ids())
        self._pause_began = host_clock()

    def _renew(self) -> None:
        if not self._renewing.acquire(blocking=False):
            return  # the other thread is renewing
        try:
            if self._stopped:
                return
            self._renewal_began = before = host_clock()
            self.seconds, self.news = self._renewed()
            self.confirmed = before
        except StoreUnavailable as error:
            self._progressed = True  # progress that was not received is reported again
            logger.warning("lease not renewed: %s", error, extra=self._ids())
        except LeaseLost:
            self.lost = True
        finally:
            self._renewing.release()

    def _ids(self) -> dict[str, Any]:
        return {"event": "lease_not_renewed", "job": self.job.id, "shard": self.index, "account": self.job.account}

    def _renewed(self) -> tuple[float, Renewal]:
        left, news = self.renewer.renew(self)
        # near the stage's own deadline a renewal grants less than a lease; it never becomes longer than one
        return min(self.seconds, left), news


@dataclass(kw_only=True)
class JobLease(Lease):
    """The right to work on a job itself."""

    shards: list[ShardRecord] | None = None  #: those of the job, if they are few and this turn has read them

    @property
    def index(self) -> int:
        return JOB

    @property
    def record(self) -> JobRecord:
        return self.job


@dataclass(kw_only=True)
class ShardLease(Lease):
    """The right to work on one shard of a job."""

    shard: ShardRecord
    admitted: bool = False  #: it was given room at the provider as it was claimed
    unrecorded: Move | None = None  #: what this turn has done, and its record of an intent will tell with it

    def is_recorded(self) -> bool:
        """Whether Redis knows of all that this turn has done."""
        return self.unrecorded is None

    @property
    def index(self) -> int:
        return self.shard.index

    @property
    def record(self) -> ShardRecord:
        return self.shard
