"""The threads that send notifications: never more than a fixed number in a process, whoever hangs, and they hold up no
exit.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

#: What a process posts at once.
AT_ONCE = 10
#: What is under way at the exit of the process, and has begun a shorter time ago, gets the rest of that time. Seconds.
LAST_SECONDS = 10.0

Work = Callable[[], bool]


class Lane:
    """At most so many threads for one kind of work. They are started when there is some, and end when there is none; a
    forked process begins anew, for it has none of them.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._start_over()
        atexit.register(_let_finish, weakref.ref(self))

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[bool], Work]] = deque()
        self._begun: dict[Future[bool], float] = {}  #: what is under way, and since when
        self._threads = 0

    def submit(self, work: Work) -> Future[bool]:
        """Returns at once. What raises there raises from the future's ``result``."""
        if self._pid != os.getpid():
            self._start_over()
        future: Future[bool] = Future()
        with self._lock:
            self._waiting.append((future, work))
            if self._threads == self._most:
                return future
            self._threads += 1
        # a daemon: the interpreter would wait for it, and it may never end
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def cancel(self, futures: Sequence[Future[bool]]) -> None:
        """Those that have not begun never will."""
        ended = {future for future in futures if future.cancel()}
        with self._lock:
            self._waiting = deque(entry for entry in self._waiting if entry[0] not in ended)

    def busy_for(self) -> float:
        """For how many seconds the oldest piece of work has been under way; 0: there is none."""
        if self._pid != os.getpid():
            return 0.0
        with self._lock:
            return time.monotonic() - min(self._begun.values()) if self._begun else 0.0

    def _work(self) -> None:
        while (following := self._next()) is not None:
            future, work = following
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    del self._begun[future]

    def _next(self) -> tuple[Future[bool], Work] | None:
        with self._lock:
            while self._waiting:
                future, work = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    self._begun[future] = time.monotonic()
                    return future, work
            self._threads -= 1
            return None

    def let_finish(self) -> None:
        """Wait for what is under way, but for none longer than ``LAST_SECONDS`` after it began."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._waiting.clear()
            begun = dict(self._begun)
        for future, since in begun.items():
            wait([future], timeout=max(since + LAST_SECONDS - time.monotonic(), 0.0))


def _let_finish(lane: weakref.ref[Lane]) -> None:
    if (found := lane()) is not None:
        found.let_finish()


class Senders:
    """Those of one process: several for what is posted, which ends by itself, and one for mail, whose backend is a
    site's and may hang for ever.
    """

    def __init__(self) -> None:
        self.web, self.mail = Lane("deliver", AT_ONCE), Lane("deliver-mail", 1)
