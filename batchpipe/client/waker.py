"""Wakes shards of which webhooks tell, in a thread of its own: no sender waits for the broker."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Place = tuple[str, int]

#: Shards that wait to be woken. Where there are more, all are left for a while to the sweep, which is another process.
MOST_TO_WAKE, FLOOD_SECONDS = 100, 2.0


class Waker:
    """``wake`` is called for one shard after the other, each in the context of whoever handed it over. A forked process
    begins anew: it has none of the threads.
    """

    def __init__(self, wake: Callable[[Place], None]) -> None:
        self._wake = wake
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._room = threading.BoundedSemaphore(MOST_TO_WAKE)
        self._thread = ThreadPoolExecutor(1, "webhook-wake")
        self._flooded_until = 0.0

    def soon(self, place: Place) -> None:
        """Returns at once. What finds no room is left to the sweep."""
        if self._pid != os.getpid():
            self._begin()
        now = time.monotonic()
        if now < self._flooded_until:
            return
        if not self._room.acquire(blocking=False):
            self._flooded_until = now + FLOOD_SECONDS
            return
        try:
            self._thread.submit(contextvars.copy_context().run, self._woken, place)
        except RuntimeError:  # this process ends
            self._room.release()

    def _woken(self, place: Place) -> None:
        try:
            self._wake(place)
        finally:
            self._room.release()

    def wait(self) -> None:
        """Until what was handed over is done."""
        if self._pid == os.getpid():
            self._thread.submit(lambda: None).result()
