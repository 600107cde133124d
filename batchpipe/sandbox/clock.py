"""The sandbox's clock: real time plus an offset that tests may move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """Unix time that runs with the real one and can be moved forward, never back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Wall time is read once: a correction of the host's clock must not affect batches.
        self._epoch = time.time() - time.monotonic()
        self._offset = 0.0
        self._listeners: list[Callable[[], None]] = []

    def now(self) -> float:
        """Seconds since 1970 as the sandbox sees it."""
        with self._lock:
            return self._epoch + time.monotonic() + self._offset

    @property
    def offset(self) -> float:
        """How many seconds the clock has been moved."""
        with self._lock:
            return self._offset

    def advance(self, seconds: float) -> float:
        """Move the clock forward; everything that is now due runs at once. Returns the new time."""
        if seconds < 0:
            raise ValueError("the sandbox clock moves forward only")
        with self._lock:
            self._offset += seconds
        self._tell()
        return self.now()

    def reset(self) -> None:
        """Back to real time."""
        with self._lock:
            self._offset = 0.0
        self._tell()

    def on_move(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each move."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
