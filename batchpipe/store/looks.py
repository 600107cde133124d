"""Looks at the batches of an account: whose turn it is, and what is known from the last ones."""

from __future__ import annotations

from dataclasses import dataclass

from batchpipe.errors import LeaseLost
from batchpipe.store.connection import Connection

#: How long a look may go without reading a page, beside what it sleeps for its slot. Seconds.
LOOK_LEASE_SECONDS = 120.0


@dataclass(frozen=True)
class LookState:
    """What is known about the looks of an account. Times are 0 for never."""

    in_flight: int  #: shards with a batch that has not ended, as far as is recorded
    begun: float  #: when the last look began
    done: float  #: when the last look began that was whole and left nothing to do


class Looks:
    """By the name of the account in the settings. One look at a time over all processes."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def _key(self, account: str) -> str:
        return f"{self._redis.prefix}listed:{account}"

    def state(self, account: str) -> LookState:
        pipe = self._redis.pipeline()
        pipe.hmget(self._key(account), "begun", "done")
        pipe.zcard(f"{self._redis.prefix}inflight:{account}")
        (begun, done), in_flight = self._redis.execute(pipe)
        return LookState(int(in_flight), float(begun or 0), float(done or 0))

    def take(self, account: str, token: str, *, every: float) -> float | None:
        """Begin a look. Returns when it began; None if another one is under way, or began less than ``every`` seconds
        ago.
        """
        answer = self._redis.run("take_look", [self._key(account)], token, LOOK_LEASE_SECONDS, every)
        return float(answer[1]) if answer[0] == "ok" else None

    def renew(self, account: str, token: str, seconds: float = 0.0) -> None:
        """Keep the turn, ``seconds`` longer than usual. Raises LeaseLost."""
        if self._redis.run("renew_look", [self._key(account)], token, LOOK_LEASE_SECONDS + seconds)[0] != "ok":
            raise LeaseLost

    def end(self, account: str, token: str) -> float:
        """End a look. Returns when. Raises LeaseLost."""
        answer = self._redis.run("end_look", [self._key(account)], token)
        if answer[0] != "ok":
            raise LeaseLost
        return float(answer[1])

    def note_done(self, account: str, begun: float) -> None:
        """Note that a whole look that began then left nothing to do."""
        self._redis.call("hset", self._key(account), "done", f"{begun:.6f}")
