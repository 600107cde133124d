"""What the store tells of the whole, beside its records: the clock, pauses of accounts, numbers about all jobs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pause:
    """Why an account is paused, and for how many more seconds."""

    seconds: float
    code: str
    message: str


@dataclass(frozen=True)
class Clock:
    """Our time, and how it relates to Redis' clock. Seconds; 0 if there is nothing to report.

    When Redis' clock is set back, our time goes on from where it was, slower by a twentieth until that clock has
    caught up. A leap forward is only noted: it looks like a time in which nobody called.
    """

    now: float
    ahead: float = 0.0  #: how far we are ahead of Redis' clock
    back_at: float = 0.0  #: when Redis' clock was last set back
    back_by: float = 0.0
    leap_at: float = 0.0  #: when time last leapt forward, in our time after it
    leap_by: float = 0.0
    host: float | None = None  #: the time of this host

    @property
    def slack(self) -> float:
        """How much our time may be ahead of the provider's clock, which we cannot read, in seconds.

        As much as Redis' clock was set back, or is ahead of this host's.
        """
        return max(self.ahead, self.now - self.host if self.host is not None else 0.0)

    def words(self) -> str:
        """What to say while it is ahead; else ""."""
        if not self.ahead:
            return ""
        back = f" by {self.back_by:.0f} s" if self.back_by else ""
        return (
            f"Redis' clock was set back{back}: batchpipe's time goes on from where it was, {self.ahead:.0f} s ahead; "
            "look after the clock (NTP) of the machine that Redis runs on"
        )


@dataclass(frozen=True)
class Stats:
    """Numbers about all jobs; times in seconds of Redis' clock."""

    now: float
    unfinished: int  #: shards and jobs that have a due time
    overdue: int  #: how many of these are overdue
    lag: float  #: how long past due the most overdue one is
    swept: float | None  #: when a sweep was last completed
    jobs: dict[str, int]  #: by state; ended ones only as long as their records are kept
    ahead: float  #: how much our time is ahead of Redis' clock, which was set back


@dataclass(frozen=True)
class OpenShards:
    """The unfinished shards."""

    stages: dict[str, int]
    oldest: float  #: seconds since the oldest of them was planned
    troubled: int  #: those that make no progress just now, for a reason that status shows
