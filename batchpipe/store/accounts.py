"""What all workers share about an account: its pause, and its budget of reads."""

from __future__ import annotations

from typing import Any, cast

from batchpipe.model.records import Problem
from batchpipe.model.stats import Pause
from batchpipe.store.connection import Connection
from batchpipe.store.records import bounded_problem


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

    def take_rate_token(self, account: str, *, per_second: float, burst: float) -> float:
        """Take a token for one read at the provider. Returns 0, or the seconds until there is one."""
        return float(
            cast(Any, self._redis.run("take_rate_token", [f"{self._redis.prefix}rate:{account}"], per_second, burst))
        )
