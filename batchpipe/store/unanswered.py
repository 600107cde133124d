"""Create calls of an account that have no clear answer: which shards have one, and what walks through its list saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from batchpipe.store.connection import Connection
from batchpipe.store.records import parse_member

#: How many of the latest walks are kept.
MOST_WALKS = 16
#: How long they are kept, in seconds.
WALKS_LIVE_SECONDS = 86_400
#: How long it is known that one failed, and how many characters of a refusal are kept.
FAILED_LIVES_SECONDS, MOST_REFUSED = 60, 500
#: Members that one script is given.
CHUNK = 100


class Unanswered:
    """By the name of the account in the settings. The scripts that record and settle calls keep the index."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def count(self, account: str) -> int:
        """How many shards have one."""
        return int(self._redis.call("zcard", f"{self._redis.prefix}unanswered:{account}"))

    def oldest(self, account: str, since: float = 0.0) -> float | None:
        """The earliest time that the first call of one of them may have had at the provider, of those not before
        ``since``; None: there is none."""
        key = f"{self._redis.prefix}unanswered:{account}"
        found = self._redis.call("zrangebyscore", key, f"{since:.6f}", "+inf", start=0, num=1, withscores=True)
        return float(found[0][1]) if found else None

    def among(self, account: str, places: Sequence[tuple[str, int]]) -> list[bool]:
        """Which of these shards have one."""
        members = [self._redis.member(*place) for place in places]
        if not members:
            return []
        scores = self._redis.call("zmscore", f"{self._redis.prefix}unanswered:{account}", members)
        return [score is not None for score in scores]

    def of_files(self, account: str, file_ids: Sequence[str]) -> list[tuple[str, int] | None]:
        """The shards among them whose input files these are."""
        if not file_ids:
            return []
        found = self._redis.call("hmget", f"{self._redis.prefix}unanswered_files:{account}", list(file_ids))
        return [parse_member(member) if member else None for member in found]

    def awaiting_walk(self, account: str, after: float, until: float, limit: int) -> list[tuple[str, int]]:
        """Those that wait for a walk that began at a time from ``after`` (left out) to ``until``, earliest first."""
        key = f"{self._redis.prefix}awaiting_walk:{account}"
        found = self._redis.call("zrangebyscore", key, f"({after:.6f}", f"{until:.6f}", start=0, num=limit)
        return [parse_member(member) for member in found]

    def is_walk_awaited(self, account: str) -> bool:
        """Whether any of them waits for a walk."""
        return bool(self._redis.call("exists", f"{self._redis.prefix}awaiting_walk:{account}"))

    def recheck(self, account: str) -> None:
        """Take out of the oldest ones those that are there no longer by right: a few at each call."""
        key = f"{self._redis.prefix}unanswered:{account}"
        if members := self._redis.call("zrange", key, 0, CHUNK - 1):
            awaiting = f"{self._redis.prefix}awaiting_walk:{account}"
            self._redis.run("recheck_unanswered", [key, awaiting], self._redis.prefix, "\n".join(members))

    # -- walks -----------------------------------------------------------------------------------------------------

    def note_walk(self, account: str, walk: bytes) -> None:
        """Keep what a walk saw (JSON), for the shards whose calls it may clear."""
        key = f"{self._redis.prefix}walks:{account}"
        pipe = self._redis.pipeline()
        pipe.lpush(key, walk.decode())
        pipe.ltrim(key, 0, MOST_WALKS - 1)
        pipe.expire(key, WALKS_LIVE_SECONDS)
        self._redis.execute(pipe)

    def walks(self, account: str) -> list[str]:
        """The latest walks, as they were noted, the latest first."""
        return cast("list[str]", self._redis.call("lrange", f"{self._redis.prefix}walks:{account}", 0, -1))

    def note_failed_walk(self, account: str, *, refused: str = "") -> None:
        """A walk for an unanswered create has failed just now; ``refused``: that it cannot list."""
        key = f"{self._redis.prefix}walk_failed:{account}"
        self._redis.call("set", key, f"{self._redis.now():.6f} {refused[:MOST_REFUSED]}", ex=FAILED_LIVES_SECONDS)

    def failed_walk(self, account: str) -> tuple[float, str]:
        """When the latest one failed that did within a minute (0: none did), and the words if it was refused."""
        at, _, refused = str(self._redis.call("get", f"{self._redis.prefix}walk_failed:{account}") or "0").partition(
            " "
        )
        return float(at), refused
