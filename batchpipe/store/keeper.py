"""The thread that renews the leases of a process while their turns work."""

from __future__ import annotations

import os
import threading
from typing import Protocol

#: A thread that has no lease to renew ends after so many seconds.
IDLE_SECONDS = 10.0
#: Renewals that are due within so many seconds are made together.
TOGETHER_SECONDS = 0.05


class Kept(Protocol):
    """A lease, as far as it is renewed."""

    lost: bool

    def until_renewal(self) -> float:
        """Seconds until it is to be renewed."""

    def renew_now(self) -> None:
        """Renew it, unless somebody else is about to. Raises nothing."""


class Keeper:
    """Renews all leases of a store, each three times in its length, in one thread: to start and end one with each turn
    would cost a small turn a fifth of its time.

    One after the other, for they ask the same Redis: one that hangs keeps all of them, and answers all when it is back.
    The thread begins with the first lease and ends a while after the last. A forked child begins with none.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._kept: dict[int, Kept] = {}
        self._thread: threading.Thread | None = None
        self._sooner = threading.Event()
        self._awake_in: float | None = None  #: how long the thread sleeps; None: it is awake

    def keep(self, lease: Kept) -> None:
        """Renew this lease from now on."""
        if self._pid != os.getpid():
            self._begin()  # the parent keeps its own; its lock may have been held at the fork
        with self._lock:
            self._kept[id(lease)] = lease
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="batchpipe-leases", daemon=True)
                self._thread.start()
            elif self._awake_in is not None and lease.until_renewal() < self._awake_in:
                self._sooner.set()

    def let_go(self, lease: Kept) -> None:
        """Renew it no more; one renewal may be under way."""
        with self._lock:
            self._kept.pop(id(lease), None)

    def _run(self) -> None:
        idle = False
        while True:
            with self._lock:
                kept = [lease for lease in self._kept.values() if not lease.lost]
                if not self._kept and idle:
                    self._thread = None
                    return
                idle = not self._kept
                self._sooner.clear()
                pause = min((lease.until_renewal() for lease in kept), default=IDLE_SECONDS)
                self._awake_in = pause
            if pause > 0:
                self._sooner.wait(pause)
            with self._lock:
                self._awake_in = None
                due = [lease for lease in self._kept.values() if not lease.lost]
            for lease in due:
                if lease.until_renewal() <= TOGETHER_SECONDS:
                    lease.renew_now()
