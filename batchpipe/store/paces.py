"""How long batches take: the sketches of turnarounds, and the shards whose batches are late."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, cast

import orjson

from batchpipe.errors import RecordUnreadable
from batchpipe.model.pace import BINS, NO_HISTORY, History, days_of, today_of
from batchpipe.model.records import Problem, ShardRecord
from batchpipe.store.connection import Connection
from batchpipe.store.records import decoded, encode_value, parse_member

#: How many batches in flight are looked at for the part that has not ended.
MOST_LOOKED_AT = 100
#: How long a history is kept in this process, in seconds, and how many.
KEPT_SECONDS, MOST_KEPT = 30.0, 500
#: How often late batches are looked for, over all processes, in seconds.
JUDGE_SECONDS = 60.0
#: What is read of a shard to judge whether its batch is late.
JUDGED = (
    "rows",
    "model",
    "batch_id",
    "status",
    "counts",
    "created_at",
    "intent_at",
    "made_at",
    "in_progress_at",
    "snapshot_at",
)


@dataclass(frozen=True)
class ModelPace:
    """The histories of one model: from the making of a batch to its end, and until it began to run."""

    took: History = NO_HISTORY
    queued: History = NO_HISTORY


class Paces:
    """By account and model ("": a shard without one, and those beyond 200)."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, ModelPace]] = {}

    def of(self, account: str, model: str | None) -> ModelPace:
        """What is known of a model's batches, kept for half a minute."""
        key, now = (account, model or ""), time.monotonic() + self._redis.skew()
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and abs(now - kept[0]) < KEPT_SECONDS:
            return kept[1]
        found = self.read(*key)
        with self._lock:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = now, found
        return found

    def read(self, account: str, model: str) -> ModelPace:
        """The same, read now."""
        prefix = self._redis.prefix
        keys = [f"{prefix}inflight:{account}", f"{prefix}paces:{account}"]
        now, flat, each, ages = self._redis.run("read_pace", keys, prefix, account, model, MOST_LOOKED_AT)
        fields = {name: _bins(text) for name, text in zip(flat[::2], flat[1::2], strict=True)}
        today = today_of(float(now))
        running = [float(age) for age in ages]
        return ModelPace(
            History(days_of(fields, today, "took"), running, float(each)), History(days_of(fields, today, "queued"))
        )

    def models(self, account: str, most: int) -> list[str]:
        """Models with batches that ended in the last days, the latest first."""
        return cast("list[str]", self._redis.call("zrevrange", f"{self._redis.prefix}paces:{account}", 0, most - 1))

    # -- late batches ----------------------------------------------------------------------------------------------

    def late(self, account: str) -> int:
        """How many batches in flight are said to be late."""
        return int(self._redis.call("zcard", f"{self._redis.prefix}late:{account}"))

    def take_judging(self, account: str, now: float) -> bool:
        """Whether it is time to look for late batches; the caller does."""
        key = f"{self._redis.prefix}judged:{account}"
        last = self._redis.call("get", key)
        if last and abs(now - float(last)) < JUDGE_SECONDS:
            return False
        self._redis.call("set", key, f"{now:.6f}", ex=3_600)
        return True

    def count_in_flight(self, account: str, made_before: float) -> int:
        """How many batches in flight were made before that time."""
        return int(self._redis.call("zcount", f"{self._redis.prefix}inflight:{account}", "-inf", f"{made_before:.6f}"))

    def in_flight(self, account: str, first: int, most: int) -> list[ShardRecord]:
        """Shards in flight in the order of their batches' age, from one on, with the fields of ``JUDGED``; those that
        are known to be late, or to have ended, are left out, and what cannot be read."""
        members = self._redis.call("zrange", f"{self._redis.prefix}inflight:{account}", first, first + most - 1)
        places = [parse_member(member) for member in members]
        names = ["job", "index", "stage", "over_at", "stalled_at", *JUDGED]
        found = []
        for place, answer in zip(places, self._redis.hashes([self._redis.key(*p) for p in places], names), strict=True):
            try:
                shard = decoded(ShardRecord, answer, f"{place[0]}, shard {place[1]}")
            except RecordUnreadable:
                continue
            if shard is not None and shard.stage == "created" and shard.over_at is None and shard.stalled_at is None:
                found.append(shard)
        return found

    def mark_late(self, shard: ShardRecord, problem: Problem) -> bool:
        """Say that a shard's batch is late. Returns whether that is new, and still so."""
        keys, member = self._redis.keys(shard.job, shard.index), self._redis.member(shard.job, shard.index)
        answer = self._redis.run(
            "mark_late", keys, self._redis.prefix, member, shard.batch_id or "", encode_value(problem)
        )
        return bool(answer[0] == "ok")

    def forget_late(self, account: str) -> None:
        """Take out some that are in flight no more, which a lost record may have left."""
        key = f"{self._redis.prefix}late:{account}"
        members = self._redis.call("zrange", key, 0, MOST_LOOKED_AT - 1)
        if not members:
            return
        scores: list[Any] = self._redis.call("zmscore", f"{self._redis.prefix}inflight:{account}", members)
        if gone := [member for member, score in zip(members, scores, strict=True) if score is None]:
            self._redis.call("zrem", key, *gone)


def _bins(text: str) -> dict[int, int]:
    """The counts of one day; empty for what cannot be read: they are for people."""
    try:
        return {int(number): int(count) for number, count in orjson.loads(text).items() if 0 <= int(number) < BINS}
    except (ValueError, AttributeError, TypeError):
        return {}
