"""Looks at the batches of an account: whose turn it is, and what is known from the last ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from batchpipe.errors import LeaseLost
from batchpipe.model.provider import Batch
from batchpipe.model.records import Status
from batchpipe.store.connection import Connection
from batchpipe.store.records import encode_changes, encode_value, parse_member

#: How long somebody who asks for a status counts as watching.
WATCHED_SECONDS = 30
#: Members of the set of shards in flight that are read in one go.
_AT_ONCE = 1_000
#: An ended batch with more errors is read by its own shard.
_MOST_ERRORS = 100


@dataclass(frozen=True)
class LookState:
    """What is known about the looks of an account. Times are 0 for never."""

    in_flight: int  #: shards with a batch that has not ended, as far as is recorded
    begun: float  #: when the last look began
    done: float  #: when the last look began that was whole and left nothing to do
    looked: float = 0.0  #: when the last look began that met what is in flight
    until: float = 0.0  #: up to then polls may be parked
    whole: float = 0.0  #: when the last look began that was whole back to ``done``
    calls: int = 0  #: how many calls of the provider that took
    ranks: list[list[float]] = field(default_factory=list)  #: see ``pipeline.ranks``
    ranks_read_at: float | None = None  #: when the head of the list was last read


class PageSeen(NamedTuple):
    """What a page of the list is to the records."""

    recorded: frozenset[str]  #: ids of batches that are their shards'
    met: set[str]  #: members of the shards in flight whose batches it has
    wake: list[tuple[str, int]]  #: shards to publish again: their batches have ended, or somebody is cancelling them
    granted: list[tuple[str, int]]  #: shards that have got the room of batches that have ended, and are due now


class Looks:
    """By the name of the account in the settings. One look at a time over all processes."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def _key(self, account: str) -> str:
        return f"{self._redis.prefix}listed:{account}"

    def state(self, account: str) -> LookState:
        pipe = self._redis.pipeline()
        pipe.hmget(self._key(account), "begun", "done", "looked", "until", "whole", "calls", "ranks")
        pipe.zcard(f"{self._redis.prefix}inflight:{account}")
        found, in_flight = self._redis.execute(pipe)
        begun, done, looked, until, whole, calls = (float(at or 0) for at in found[:-1])
        ranks = orjson.loads(found[-1] or "{}")
        return LookState(
            int(in_flight), begun, done, looked, until, whole, int(calls), ranks.get("parts", []), ranks.get("read_at")
        )

    def take(self, account: str, token: str, *, lease: float, every: float) -> float | None:
        """Begin a look, for ``lease`` seconds unless it is renewed. Returns when it began; None if another one is under
        way, or began less than ``every`` seconds ago.
        """
        answer = self._redis.run("take_look", [self._key(account)], token, lease, every)
        return float(answer[1]) if answer[0] == "ok" else None

    def renew(self, account: str, token: str, *, lease: float) -> None:
        """Keep the turn for ``lease`` seconds from now. Raises LeaseLost."""
        if self._redis.run("renew_look", [self._key(account)], token, lease)[0] != "ok":
            raise LeaseLost

    def end(
        self,
        account: str,
        token: str,
        *,
        begun: float,
        good: float | None,
        ranks: Sequence[Sequence[float]],
        read_at: float | None,
    ) -> float:
        """End a look that ``begun`` then. Returns when. Raises LeaseLost.

        ``good``: it met what is in flight, and polls may be parked for so many seconds from now; None: they may not.
        """
        fields: dict[str, str] = {"ranks": orjson.dumps({"read_at": read_at, "parts": ranks}).decode()}
        if good is not None:
            fields["looked"] = f"{begun:.6f}"
        flat = [part for pair in fields.items() for part in pair]
        answer = self._redis.run("end_look", [self._key(account)], token, good or 0, *flat)
        if answer[0] != "ok":
            raise LeaseLost
        return float(answer[1])

    def give_up(self, account: str, token: str) -> None:
        """End a look that has found nothing. Raises LeaseLost."""
        if self._redis.run("end_look", [self._key(account)], token, 0)[0] != "ok":
            raise LeaseLost

    def record_page(self, account: str, batches: Sequence[Batch], *, every: float, net: float) -> PageSeen:
        """Compare a page (at most a hundred batches) with the records, and write what has changed: a status at once,
        counts if those of the record are ``every`` seconds old, or somebody watches. Parked polls that live are not due
        before about ``net`` seconds.
        """
        keys = [f"{self._redis.prefix}watched:{account}", f"{self._redis.prefix}due"]
        args = [arg for batch in batches for arg in _as_arguments(batch)]
        answer = self._redis.run("record_page", keys, self._redis.prefix, account, every, net, *args)
        recorded, met, wake, granted = answer
        return PageSeen(
            frozenset(batches[int(number)].id for number in recorded),
            set(met),
            [parse_member(member) for member in wake],
            [parse_member(member) for member in granted],
        )

    def in_flight(self, account: str) -> Iterator[tuple[str, float]]:
        """(member, when its batch was made) of the shards in flight, the latest first. None of them is passed over,
        though others leave the set meanwhile.
        """
        member, made, most = "", math.inf, _AT_ONCE
        while found := self._in_flight_from(account, made, most):
            # of those made at the same time, the ones up to the last were read before
            further = [one for one in found if one[1] < made or one[0] < member] if member else found
            if not further and len(found) < most:
                return
            yield from further
            reached = further[-1] if further else (member, made)
            most = _AT_ONCE if reached[1] < made else 2 * most  # very many may have been made at the same time
            member, made = reached

    def _in_flight_from(self, account: str, made: float, most: int) -> list[tuple[str, float]]:
        """The first of those made then or before, the latest first; of the same time by their names, backwards."""
        found = self._redis.call(
            "zrange",
            f"{self._redis.prefix}inflight:{account}",
            made,
            -math.inf,
            byscore=True,
            desc=True,
            withscores=True,
            offset=0,
            num=most,
        )
        return list(found)

    def forget_if_gone(self, account: str, member: str) -> None:
        """A shard whose record is no more (deleted by hand) is not in flight."""
        if not self._redis.call("exists", self._redis.key(*parse_member(member))):
            self._redis.call("zrem", f"{self._redis.prefix}inflight:{account}", member)

    def note_watched(self, account: str) -> None:
        """Somebody watches a job of this account: for a while, counts are written by each look."""
        self._redis.call("set", f"{self._redis.prefix}watched:{account}", "1", ex=WATCHED_SECONDS)

    def note_whole(self, account: str, begun: float, *, calls: int, done: bool) -> None:
        """Note that a look that began then was whole, and took so many calls; ``done``: it left nothing to do."""
        fields = {"whole": f"{begun:.6f}", "calls": str(calls)} | ({"done": f"{begun:.6f}"} if done else {})
        self._redis.call("hset", self._key(account), mapping=fields)


def _as_arguments(batch: Batch) -> tuple[str, ...]:
    """What the script is given of a batch."""
    fields: dict[str, object] = dict(batch.times)
    if batch.status in Status.FINAL and len(batch.errors) <= _MOST_ERRORS:
        files = {"output_file_id": batch.output_file_id, "error_file_id": batch.error_file_id}
        found = {**files, "errors": batch.errors}
        fields |= {"end_seen": True, **{name: value for name, value in found.items() if value}}
    more = orjson.dumps(encode_changes(fields)).decode()
    return batch.id, batch.status or "", encode_value(batch.counts), more
