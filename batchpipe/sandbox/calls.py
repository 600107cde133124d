"""A bounded log of the API calls a sandbox has received."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

#: How many calls are kept; the counts go on beyond it.
KEPT = 10_000


@dataclass
class Call:
    """One request. `status` is None while it runs, or if no answer was sent (a dropped connection)."""

    method: str
    path: str
    route: str  #: method and path with ids replaced, e.g. `GET /v1/batches/{id}`
    at: float
    status: int | None = None


class CallLog:
    """The latest calls, oldest first, and the number of calls of each route."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque(maxlen=KEPT)
        self._counts: Counter[str] = Counter()

    def start(self, method: str, path: str, route: str, at: float) -> Call:
        """Note a request that has just arrived."""
        call = Call(method, path, route, at)
        with self._lock:
            self._calls.append(call)
            self._counts[route] += 1
        return call

    def __iter__(self) -> Iterator[Call]:
        with self._lock:
            return iter(list(self._calls))

    def __len__(self) -> int:
        with self._lock:
            return sum(self._counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """How many calls each route has had."""
        with self._lock:
            return dict(self._counts)

    def count(self, route: str) -> int:
        """How many calls this route has had, e.g. `count("POST /v1/batches")`."""
        with self._lock:
            return self._counts[route]

    def clear(self) -> None:
        """Forget all calls."""
        with self._lock:
            self._calls.clear()
            self._counts.clear()

    def as_json(self) -> dict[str, Any]:
        """The response of `GET /sandbox/calls`."""
        return {"counts": self.counts, "calls": [asdict(call) for call in self]}
