"""The event log of each job, limited in the number of events and the size of each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import orjson

from batchpipe.errors import MOST_CODE, shortened
from batchpipe.store.connection import Connection

#: Limits for a field of an event: characters of a text, entries of a list.
MOST_TEXT, MOST_ENTRIES = 1_000, 100
#: Events kept per job; the oldest go first.
LOG_LENGTH = 2_000
#: How long a log lives after an event, in seconds.
LOG_SECONDS = 60 * 86_400
#: A log lives on with each event; a process says so once in this time, and remembers for how many logs it did.
_RENEW_SECONDS, _MOST_KEPT = 3_600.0, 10_000


class Events:
    """What happened to a job, for people."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._kept: dict[str, float] = {}  #: log -> when this process last let it live on, by this host's clock

    def add(self, job_id: str, event: str, **fields: Any) -> None:
        """Append to the job's bounded event log."""
        key = f"{self._redis.prefix}log:{job_id}"
        data = data_of(fields)
        pipe = self._redis.pipeline()
        pipe.xadd(key, {"event": shortened(event, 100), "data": data}, maxlen=LOG_LENGTH, approximate=True)
        if renew := time.monotonic() - self._kept.get(key, -math.inf) > _RENEW_SECONDS:
            pipe.expire(key, LOG_SECONDS)
        self._redis.execute(pipe)
        if renew:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = time.monotonic()

    def read(self, job_id: str, *, after: str = "-", limit: int = LOG_LENGTH) -> list[dict[str, Any]]:
        """Events, oldest first: ``{id, at, event, ...}``; ``at`` in unix seconds.

        ``after``: the id of the last event read; without one, and if there are more than ``limit``, the newest.
        """
        key = f"{self._redis.prefix}log:{job_id}"
        if after == "-":
            entries = self._redis.call("xrevrange", key, count=limit)[::-1]
        else:
            entries = self._redis.call("xrange", key, min=f"({after}", count=limit)
        return [event for entry in entries if (event := _event(*entry))]


def data_of(fields: Mapping[str, Any]) -> str:
    """The fields of an event, as its log holds them."""
    return orjson.dumps({name: bounded(value) for name, value in fields.items()}).decode()


def events_of(events: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Events as a script is given them that adds them to a log; "" for none."""
    found = [[shortened(event, 100), data_of(fields)] for event, fields in events]
    return orjson.dumps(found).decode() if found else ""


def _event(entry: str, fields: Mapping[str, str]) -> dict[str, Any] | None:
    """An event of a log; None for one that cannot be read."""
    try:
        data = orjson.loads(fields["data"])
        return {"id": entry, "at": int(entry.split("-")[0]) / 1000, "event": fields["event"], **data}
    except (ValueError, KeyError, TypeError):
        return None


def bounded(value: Any, depth: int = 4) -> Any:
    """A value of an event, with its texts and lists cut: they may come from users and providers."""
    if isinstance(value, str):
        return shortened(value, MOST_TEXT)
    if isinstance(value, Mapping):
        some = islice(value.items(), MOST_ENTRIES)
        return {shortened(str(name), MOST_CODE): bounded(one, depth - 1) for name, one in some} if depth else "..."
    if isinstance(value, list | tuple):
        return [bounded(one, depth - 1) for one in value[:MOST_ENTRIES]] if depth else "..."
    return value
