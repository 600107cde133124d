"""One thread that advances all batches in turn, a slice at a time."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Generator

from batchpipe.sandbox.clock import Clock

logger = logging.getLogger(__name__)

#: The life of a batch, as a generator: it yields the time at which it wants to be called again.
Life = Generator[float, None, None]


class Engine:
    """Runs lives (generators). A life takes its next step when it is poked or its time has come."""

    def __init__(self, clock: Clock, on_error: Callable[[str, Exception], None]) -> None:
        self._clock = clock
        self._on_error = on_error
        self._changed = threading.Condition()
        self._lives: dict[str, Life] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._count = itertools.count()
        self._stopping = False
        #: Held during a step: while another thread holds it, no life runs.
        self.standstill = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sandbox-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step that runs; lives are left where they are."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._close_lives()

    def add(self, name: str, life: Life) -> None:
        """Run this life from now on."""
        with self._changed:
            self._lives[name] = life
            self._schedule(name, 0.0)

    def poke(self, name: str) -> None:
        """Let a life take its next step now."""
        with self._changed:
            if name in self._lives:
                self._schedule(name, 0.0)

    def poke_all(self) -> None:
        """Let all lives take a step: the clock or the faults have changed."""
        with self._changed:
            for name in self._lives:
                self._schedule(name, 0.0)

    def clear(self) -> None:
        """Drop all lives. Call it only while none runs."""
        self._close_lives()

    def _close_lives(self) -> None:
        with self._changed:
            lives = list(self._lives.values())
            self._lives.clear()
            self._due.clear()
            self._heap.clear()
        for life in lives:
            life.close()

    def _schedule(self, name: str, due: float) -> None:
        self._due[name] = due
        heapq.heappush(self._heap, (due, next(self._count), name))
        self._changed.notify()

    def _next(self) -> str | None:
        """Wait for the next life that is due; None: stop."""
        with self._changed:
            while not self._stopping:
                while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                    heapq.heappop(self._heap)  # outdated: it was scheduled again since
                wait = self._heap[0][0] - self._clock.now() if self._heap else None
                if wait is not None and wait <= 0:
                    name = heapq.heappop(self._heap)[2]
                    # From here on a poke counts as new, and makes the life run once more.
                    del self._due[name]
                    return name
                self._changed.wait(wait)
        return None

    def _run(self) -> None:
        while (name := self._next()) is not None:
            with self.standstill:
                life = self._lives.get(name)
                if life is not None:
                    self._step(name, life)

    def _step(self, name: str, life: Life) -> None:
        try:
            due = next(life)
        except StopIteration:
            self._forget(name)
        except Exception as error:
            # The edge of the engine: one broken batch must not stop the others.
            logger.exception("batch %s broke the sandbox", name)
            self._forget(name)
            self._on_error(name, error)
        else:
            with self._changed:
                if name in self._lives and name not in self._due:
                    self._schedule(name, max(due, self._clock.now()))  # after everything else that is due now

    def _forget(self, name: str) -> None:
        with self._changed:
            self._lives.pop(name, None)
            self._due.pop(name, None)
