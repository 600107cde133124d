"""Admission: what a shard needs before it is sent, reserved over all workers; and the queues of those that wait for it.

Who holds what, who waits and in which order is in Redis, see ``scripts/admission.lua``. How it fits into turns:

* *before upload*, and before create for a shard that holds nothing, ``admit`` under the shard's lease. ``Waiting``: the
  turn ends without a message, with ``WAIT_SECONDS`` as its pause. Whoever is granted room later is due at once.
* *the end of a batch* needs no call here: ``settle``, ``advance`` and ``record_batch_status`` release what the shard
  held and grant it to those who wait. ``take_granted`` then says whom to publish again; the sweep finds the others.
* *a refusal* (the provider's queue is full) is a change of the turn's end: ``Move(stage=UPLOADED, after=WAIT_SECONDS,
  changes={..., "full": Full(kind="tokens", limit=said or None)})``. The limit is lowered, the shard gives back what it
  held and waits as the first of its job, all in the script that ends the turn; nobody is granted anything by it.
* *the call*: ``Leases.record_intent(lease, admitted=True)`` answers ``no_hold`` for a shard that holds nothing; it asks
  again, and waits before create.
* *the sweep*: ``grant`` and, now and then, ``rebuild`` for each of ``accounts``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import orjson

from batchpipe.errors import LeaseLost
from batchpipe.model.admission import FIRST_RATIO, IDLE_SECONDS, Admitted, Kind, Limits, Rebuilt, Room, Waiting
from batchpipe.model.records import JOB
from batchpipe.store.connection import Connection
from batchpipe.store.lease import ShardLease
from batchpipe.store.records import chunks, parse_member

#: Grants of one script, which take a tenth of a millisecond each.
MOST_GRANTS = 25
#: Grants of one call, or shards that one is told of.
_AT_ONCE = 100
#: Holds or shards in flight that one script looks at.
_PAGE = 100
#: Shards whose place one script looks up.
_PLACES = 100
#: How long a process goes by what it has read of a model, and of how many. Seconds.
_LATELY, _MOST_KEPT = 5.0, 1_000

T = TypeVar("T")


class Admission:
    """By the name of the account in the settings; models as rows name them, None where they name none."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._kept: dict[tuple[Any, ...], tuple[float, Any]] = {}

    def admit(
        self, lease: ShardLease, needs: Mapping[Kind, int], limits: Limits, *, uploads: int = 0
    ) -> Admitted | Waiting:
        """Reserve all that a shard needs (see ``needs_of``), or nothing and put it into its queue.

        ``limits``: what the settings say; in force for grants, too, until somebody says otherwise. May be repeated: who
        holds something stays in, who waits keeps its place. ``uploads``: the shard's upload calls with the one that
        follows, recorded if it is let in. Raises LeaseLost, StoreUnavailable.
        """
        answer = self._redis.run(
            "admit",
            self._redis.keys(lease.job.id, lease.index),
            self._redis.prefix,
            self._redis.member(lease.job.id, lease.index),
            lease.token,
            orjson.dumps(dict(needs)).decode(),
            orjson.dumps(dict(limits)).decode(),
            uploads or "",
        )
        if answer[0] == "lost":
            raise LeaseLost
        return Admitted() if answer[0] == "in" else Waiting(int(answer[1]), int(answer[2]), answer[3])

    def grant(self, account: str, most: int = _AT_ONCE) -> list[tuple[str, int]]:
        """Give what is free to those who wait. Returns (job id, index) of shards that are due now: publish them again.

        For the sweep: spans go by, pauses end, limits change. If as many come as were asked for, there may be more.
        """
        found = list[str]()
        while len(found) < most:
            wanted = min(most - len(found), MOST_GRANTS)
            some = self._redis.run("grant", [f"{self._redis.prefix}due"], self._redis.prefix, account, wanted)
            found += some
            if len(some) < wanted:
                break
        return [parse_member(member) for member in found]

    def take_granted(self, most: int = _AT_ONCE) -> list[tuple[str, int]]:
        """Shards that were granted something by scripts that answer something else: publish them again, if overdue.

        Each is told once. Who forgets them loses nothing but time: they are due, and found by the sweep.
        """
        members = self._redis.run("take_granted", [f"{self._redis.prefix}granted"], most)
        return [parse_member(member) for member in members]

    def begin_rebuild(self, account: str, every: float) -> bool:
        """Whether it is time for one, and nobody else has begun it within ``every`` seconds."""
        key = f"{self._redis.prefix}rebuilt:{account}"
        return bool(self._redis.call("set", key, "1", nx=True, ex=max(round(every), 1)))

    def rebuild(self, account: str, *, idle: float = IDLE_SECONDS) -> Rebuilt:
        """Compare holds and sums with the records, and put right what a bug or a lost second of Redis has left.

        Holds go whose shard has no use for them, or was let in ``idle`` seconds ago and made no call. Shards in flight
        without a hold get one. In short scripts; any number of processes may do it at once. Call ``grant`` then.
        """
        dropped, corrected = self._check_holds(account, idle)
        return Rebuilt(dropped, self._hold_in_flight(account), corrected)

    def _check_holds(self, account: str, idle: float) -> tuple[int, int]:
        dropped, corrected, at = 0, 0, ""
        while True:
            args = (self._redis.prefix, account, idle, _PAGE, at)
            answer = self._redis.run("check_holds", [f"{self._redis.prefix}due"], *args)
            dropped, corrected, at = dropped + int(answer[1]), corrected + int(answer[2]), answer[0]
            if not at:
                return dropped, corrected

    def _hold_in_flight(self, account: str) -> int:
        added, first, left = 0, 0, 1
        while left > 0:
            args = (self._redis.prefix, account, FIRST_RATIO, first, _PAGE)
            answer = self._redis.run("hold_in_flight", [f"{self._redis.prefix}inflight:{account}"], *args)
            added, left, first = added + int(answer[0]), int(answer[1]), first + _PAGE - int(answer[2])
        return added

    # -- reading ---------------------------------------------------------------------------------------------------

    def accounts(self) -> list[str]:
        """Accounts with a shard that asked for room within two days, or still holds some."""
        found: list[str] = self._redis.call("zrange", f"{self._redis.prefix}admitting", 0, -1)
        return found

    def rooms(self, account: str) -> list[Room]:
        """All resources of an account that were in use within two days, a few hundred at most."""
        found = self._redis.run("read_rooms", [f"{self._redis.prefix}rooms:{account}"], self._redis.prefix, account)
        return [_room(account, dict(zip(one[::2], one[1::2], strict=True))) for one in found]

    def limit(self, account: str, model: str | None, limits: Limits) -> int | None:
        """Tokens of a model that may be queued at once: the lower of settings and learned; None: unknown."""
        args = (self._redis.prefix, account, model or "")
        learned = self._redis.run("read_limit", [f"{self._redis.prefix}rooms:{account}"], *args)
        known = [int(learned[0])] if learned else []
        return min([*known, *([limits["tokens"]] if "tokens" in limits else [])], default=None)

    def lately_limit(self, account: str, model: str | None, limits: Limits) -> int | None:
        """The same, as it was some seconds ago at most."""
        key = ("limit", account, model, limits.get("tokens"))
        return self._lately(key, lambda: self.limit(account, model, limits))

    def waiting_of(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Waiting]:
        """For those of these shards (job id, index) that wait in a queue: where, and for what. For people."""
        found = dict[tuple[str, int], Waiting]()
        for some in chunks([place for place in places if place[1] != JOB], _PLACES):
            members = [self._redis.member(*place) for place in some]
            answers = self._redis.run("read_waiting", [f"{self._redis.prefix}due"], self._redis.prefix, *members)
            for place, answer in zip(some, answers, strict=True):
                if answer:
                    found[place] = Waiting(int(answer[0]), int(answer[1]), answer[2])
        return found

    def waiting_jobs(self, job_ids: Sequence[str]) -> dict[str, tuple[int, Waiting]]:
        """For those of these jobs that have shards in a queue: how many, and where the first stands. For people."""
        found = dict[str, tuple[int, Waiting]]()
        for some in chunks(job_ids, _PLACES):
            answers = self._redis.run("read_waiting_jobs", [f"{self._redis.prefix}due"], self._redis.prefix, *some)
            for job_id, answer in zip(some, answers, strict=True):
                if answer:
                    found[job_id] = int(answer[0]), Waiting(int(answer[1]), int(answer[2]), answer[3])
        return found

    # -- bytes and tokens --------------------------------------------------------------------------------------------

    def observe(self, model: str | None, size: int, tokens: int) -> None:
        """So many bytes of requests were so many input tokens, as the provider counts. For a whole shard at once.

        A repeat counts twice, so nothing but estimates rests on it.
        """
        if size > 0 and tokens > 0:
            self._redis.run("observe_tokens", [], self._redis.prefix, model or "", size, tokens)

    def ratio(self, model: str | None) -> float:
        """Input tokens per byte of requests to this model, as they were lately; ``FIRST_RATIO``: nothing is known."""
        found = self._redis.run("read_ratio", [], self._redis.prefix, model or "")
        return float(found[0]) if found else FIRST_RATIO

    def lately_ratio(self, model: str | None) -> float:
        """The same, as it was some seconds ago at most."""
        return self._lately(("ratio", model), lambda: self.ratio(model))

    def _lately(self, key: tuple[Any, ...], read: Callable[[], T]) -> T:
        now = time.monotonic() + self._redis.skew()
        kept = self._kept.get(key)
        if kept is not None and abs(now - kept[0]) < _LATELY:
            return cast(T, kept[1])
        found = read()
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = now, found
        return found


def _room(account: str, found: Mapping[str, str]) -> Room:
    def number(name: str) -> int | None:
        return int(found[name]) if found.get(name) else None

    return Room(
        account=account,
        kind=found["kind"],  # type: ignore[arg-type]
        model=found.get("model") or None,
        held=number("held") or 0,
        sent=number("sent") or 0,
        limit=number("limit"),
        configured=number("configured"),
        learned=number("learned"),
        holders=number("holders") or 0,
        waiting=number("waiting") or 0,
    )
