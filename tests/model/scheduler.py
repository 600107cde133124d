"""Actors: real code in threads of which only one runs at a time, and which stop where the schedule says.

The code under test calls ``point`` wherever something could come in between: around each script, provider call and
publication. There the actor's thread waits until it may run, is let run later, or never again (``Vanished``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from batchpipe.testing import Vanished


class Actor:
    """One thread that runs one body after another; ``parked`` while a body of it waits until it may run."""

    def __init__(self) -> None:
        self.parked = False
        self.frozen = False  #: its host stands still: it is not run on, and renews nothing
        self.fault = ""  #: what befalls its next script or call
        self.result: Any = None
        self._doomed = False
        self._left = 0
        self._stop_at = ""
        self._body: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        # bare locks: a hand-over is most of the cost of a schedule
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._live, name="actor", daemon=True)
        self._thread.start()

    def begin(self, body: Callable[[], Any], points: int, stop_at: str = "") -> bool:
        """Run a body for so many points, or up to the one with that name. True: it came to its end, and ``result``
        is there.
        """
        assert not self.parked
        self._body, self._doomed, self.frozen, self.result = body, False, False, None
        self._stop_at = stop_at
        return self.resume(points)

    def resume(self, points: int) -> bool:
        """Run on for so many points. True: the body came to its end. Raises what the body raised."""
        self._left, self.parked = points, False
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return not self.parked

    def kill(self) -> bool:
        """Let the body do nothing any more, as a kill -9 does. True: it came to its end."""
        self._doomed = True
        return self.resume(1)

    def end(self) -> None:
        """End the thread."""
        if self.parked:
            self.kill()
        self._body = None
        self._go.release()
        self._thread.join()

    def point(self, name: str) -> None:
        """Called by the body: go on, or let the schedule go on, and wait. Raises Vanished."""
        if self._doomed:  # unwinding code must not act either
            raise Vanished
        self._left -= 1
        if self._left > 0 and not (name and name == self._stop_at):
            return
        self._stop_at = ""
        self.parked = True
        self._back.release()
        self._go.acquire()
        if self._doomed:
            raise Vanished

    def _live(self) -> None:
        while True:
            self._go.acquire()
            if self._body is None:
                return
            try:
                self.result = self._body()
            except Vanished:
                self.result = None
            except BaseException as error:
                self._error = error
            self._back.release()
