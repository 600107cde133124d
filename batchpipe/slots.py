"""How many long tasks a worker runs at once, so that short ones are never kept waiting by them.

A pool takes messages in the order of the queue: behind 600 uploads, a job of one row would begin an hour later. So of
the threads of a worker some are left to short tasks. A long task that finds none free comes back a little later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

#: What a task is to a worker: a transfer of a shard's file, or the reading and writing of a whole job.
Kind = Literal["transfer", "job"]
#: A shard with no more than this is carried within a moment, and needs no slot.
SMALL_BYTES, SMALL_ROWS = 262_144, 200
#: How often a second those that wait ask again, all together: twice for each slot that becomes free, within these.
FEWEST_TRIES, MOST_TRIES = 2.0, 50.0
#: The longest pause between two tries of one.
LONGEST_WAIT_SECONDS = 600.0


class Slots:
    """The slots of one process. Safe between threads."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``threads``: tasks that its pool runs at once, two at least. One in four is for whole jobs, one for what is
        short, the rest for transfers.
        """
        jobs = max(1, threads // 4)
        self.free: dict[Kind, int] = {"job": jobs, "transfer": max(1, threads - 1 - jobs)}
        self._all = dict(self.free)
        self._clock, self._lock = clock, threading.Lock()
        self._last: dict[Kind, float] = {"job": 0.0, "transfer": 0.0}
        self._held: dict[Kind, float] = {"job": 1.0, "transfer": 1.0}  # seconds, of late

    @contextmanager
    def take(self, kind: Kind) -> Iterator[bool]:
        """Hold a slot for the block, if there is a free one: says whether."""
        with self._lock:
            taken, began = self.free[kind] > 0, self._clock()
            self.free[kind] -= taken
        try:
            yield taken
        finally:
            if taken:
                with self._lock:
                    self.free[kind] += 1
                    self._held[kind] = 0.8 * self._held[kind] + 0.2 * (self._clock() - began)

    def wait(self, kind: Kind) -> float:
        """After how many seconds one that found none is to ask again: who waits longest asks first."""
        with self._lock:
            freed = self._all[kind] / max(self._held[kind], 0.001)
            pace = 1.0 / min(max(2.0 * freed, FEWEST_TRIES), MOST_TRIES)
            now = self._clock()
            at = max(now + 1.0, self._last[kind] + pace)
            self._last[kind] = at = min(at, now + LONGEST_WAIT_SECONDS)
            return at - now
