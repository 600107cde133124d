"""How many long tasks a worker runs at once, so that short ones are never kept waiting by them.

A pool takes messages in the order of the queue: behind 600 uploads, a job of one row would begin an hour later. So a
worker keeps some of its capacity for short tasks. A long task that finds no slot is retried a little later.
"""

from __future__ import annotations

import fcntl
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

#: The kinds of long tasks: a transfer of a shard's file, or the reading and writing of a whole job.
Kind = Literal["transfer", "job"]
#: A transfer of no more than this is done within a moment and needs no slot.
SMALL_BYTES, SMALL_ROWS = 262_144, 200
#: How often a second all waiting tasks together ask again: twice for each slot that becomes free, within these.
FEWEST_TRIES, MOST_TRIES = 2.0, 50.0
#: The shortest pause between two tries of one, in seconds.
SHORTEST_WAIT_SECONDS = 1.0
#: The longest.
LONGEST_WAIT_SECONDS = 600.0
#: When the last waiting task asks again, how many seconds a slot was held recently, and when one was last taken or
#: given back.
_PACE = struct.Struct("ddd")


def is_small(size: int, rows: int) -> bool:
    """Whether a shard of so many bytes and rows needs no slot."""
    return size <= SMALL_BYTES and rows <= SMALL_ROWS


class Slots:
    """The slots of one worker, whatever its pool: threads, green threads, or processes that were forked after this was
    made.

    Each slot is a byte of a file. A process holds the slot while it has the byte locked, and the system releases the
    locks of a killed process. Such locks belong to processes, not threads, so each process remembers its own slots.
    """

    def __init__(self, at_once: int, handle: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``at_once``: tasks that the pool runs at once, two at least. One in four is for whole jobs, one for short
        tasks, the rest for transfers; of two, one is for both. ``handle``: of a file that nobody else locks.
        """
        jobs = max(1, at_once // 4)
        self._all: dict[Kind, range] = {"job": range(jobs), "transfer": range(jobs, at_once - 1) or range(jobs)}
        self._handle, self._clock = handle, clock
        self._paces = mmap.mmap(-1, at_once * _PACE.size)  # all zeros, shared with forked children
        self._mine: set[int] = set()
        self._lock = threading.Lock()
        self._writing = at_once  # the byte that is locked while a pace is changed

    @contextmanager
    def take(self, kind: Kind) -> Iterator[bool]:
        """Hold a slot during the block, if one is free; yields whether it was."""
        slot, began = self._take(kind), self._clock()
        try:
            if slot is not None:
                self._note(kind)
            yield slot is not None
        finally:
            if slot is not None:
                self._give_back(slot)
                self._note(kind, self._clock() - began)

    def wait(self, kind: Kind) -> float:
        """After how many seconds a task that found no slot asks again: the one that waits longest asks first.

        The pace follows the slots that become free; while none does, it falls.
        """
        with self._changed_pace(kind) as pace:
            now, (last, held, moved) = self._clock(), pace
            seldom = max(held / len(self._all[kind]), now - moved)
            at = max(now + SHORTEST_WAIT_SECONDS, last + min(max(seldom / 2, 1 / MOST_TRIES), 1 / FEWEST_TRIES))
            pace[0] = at = min(at, now + LONGEST_WAIT_SECONDS)
            return at - now

    def _take(self, kind: Kind) -> int | None:
        with self._lock:
            for slot in self._all[kind]:
                if slot not in self._mine and self._locked(slot):
                    self._mine.add(slot)
                    return slot
        return None

    def _locked(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except (BlockingIOError, PermissionError):  # another process has it
            return False
        return True

    def _give_back(self, slot: int) -> None:
        with self._lock:
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, slot)
            self._mine.discard(slot)

    def _note(self, kind: Kind, held: float | None = None) -> None:
        """A slot was taken, or given back after so many seconds."""
        with self._changed_pace(kind) as pace:
            pace[2] = self._clock()
            if held is not None:
                pace[1] = 0.8 * pace[1] + 0.2 * held

    @contextmanager
    def _changed_pace(self, kind: Kind) -> Iterator[list[float]]:
        """The numbers of ``_PACE`` for slots of this kind, the same in all processes; what is changed is kept."""
        at = self._all[kind].start * _PACE.size
        with self._lock:
            fcntl.lockf(self._handle, fcntl.LOCK_EX, 1, self._writing)
            try:
                pace = list(_PACE.unpack_from(self._paces, at))
                yield pace
                _PACE.pack_into(self._paces, at, *pace)
            finally:
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, self._writing)
