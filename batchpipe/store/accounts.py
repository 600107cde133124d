"""What all workers share about an account: its pause, and its budget of reads."""

from __future__ import annotations

from typing import cast

from batchpipe.model.records import LONGEST_PAUSE, Problem
from batchpipe.model.stats import Pause
from batchpipe.store.connection import Connection
from batchpipe.store.records import bounded_problem

#: No slot is further away: longer than that no message of Celery should wait.
LONGEST_DEBT_SECONDS = LONGEST_PAUSE


class Accounts:
    """By the name of the account in the settings."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def pause(self, account: str, seconds: float, problem: Problem) -> None:
        """Pause this account for so long, with the reason."""
        self._redis.run("pause_account", [f"{self._redis.prefix}pause:{account}"], seconds, *bounded_problem(problem))

    def pause_of(self, account: str) -> Pause | None:
        found = self._redis.run("read_pause", [f"{self._redis.prefix}pause:{account}"])
        return Pause(float(found[0]), found[1], found[2]) if found else None

    def resume(self, account: str) -> bool:
        """End a pause. True if there was one."""
        return bool(self._redis.call("delete", f"{self._redis.prefix}pause:{account}"))

    def creating(self, since: float) -> list[str]:
        """Names of the accounts with a create call since then."""
        return cast(
            "list[str]",
            self._redis.call("zrangebyscore", f"{self._redis.prefix}accounts", f"{since:.6f}", "+inf"),
        )

    def take_rate_token(
        self,
        account: str,
        *,
        per_second: float,
        what: str = "poll",
        park: tuple[int, float] | None = None,
    ) -> tuple[str, float]:
        """Take a token for one read at the provider. Returns (``slot``, seconds until it is this read's turn: the
        caller need not ask again), or (``full``, seconds until it may ask again).

        ``what``: a ``poll``; a page of a ``look``, which comes before polls; ``news``: at once; ``booked``: no token,
        its slot has come. ``park``: if more than so many shards are in flight, looks watch them, and have seen this one
        lately (it was last seen then), the answer is (``parked``, 0), and no token is taken.
        """
        rate, in_flight = f"{self._redis.prefix}rate:{account}", f"{self._redis.prefix}inflight:{account}"
        keys = [rate, in_flight, f"{self._redis.prefix}listed:{account}"]
        most, seen = park if park is not None else ("", "")
        args = (per_second, max(1.0, 2 * per_second), what, LONGEST_DEBT_SECONDS, most, seen)
        answer = self._redis.run("take_rate_token", keys, *args)
        return str(answer[0]), float(answer[1]) if len(answer) > 1 else 0.0
