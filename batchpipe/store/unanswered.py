"""Create calls of an account that have no clear answer: which shards have one, and what walks through its list saw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from batchpipe.store.connection import Connection
from batchpipe.store.records import chunks, parse_member

#: How many of the latest walks are kept.
MOST_WALKS = 16
#: How long they are kept, in seconds.
WALKS_LIVE_SECONDS = 86_400
#: Members that one script or command is given.
CHUNK = 100


class Unanswered:
    """By the name of the account in the settings. The scripts that record and settle calls keep the index."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def count(self, account: str, since: float | None = None) -> int:
        """How many shards have one; ``since``: whose first call was made then or later."""
        low = "-inf" if since is None else f"{since:.6f}"
        return int(self._redis.call("zcount", f"{self._redis.prefix}unanswered:{account}", low, "+inf"))

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

    def all(self, account: str) -> Iterator[list[tuple[str, int]]]:
        """Their places (job id, index), a chunk at a time, in no order; one may come twice."""
        key, cursor = f"{self._redis.prefix}unanswered:{account}", 0
        while True:
            cursor, entries = cast(Any, self._redis.call("zscan", key, cursor=cursor, count=CHUNK))
            for chunk in chunks([member for member, _ in entries], CHUNK):
                yield [parse_member(member) for member in chunk]
            if not cursor:
                return

    def recheck(self, account: str, places: Sequence[tuple[str, int]]) -> None:
        """Take out those that are there no longer by right."""
        for chunk in chunks(places, CHUNK):
            members = "\n".join(self._redis.member(*place) for place in chunk)
            key = f"{self._redis.prefix}unanswered:{account}"
            self._redis.run("recheck_unanswered", [key], self._redis.prefix, members)

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
