"""Waits for calls that may hang in small steps: in between, the caller decides whether to go on waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

#: The length of a step, in seconds.
TICK = 1.0

_T = TypeVar("_T")


def wait(future: Future[_T], tick: Callable[[], None]) -> _T:
    """The result of a future. ``tick`` is called every second; if it raises, the wait ends with that error."""
    try:
        while True:
            try:
                return future.result(TICK)
            except TimeoutError:
                if future.done():
                    return future.result(0)
            tick()
    except BaseException:
        future.cancel()
        raise


def in_thread(call: Callable[[], _T]) -> Future[_T]:
    """Run a call in a thread of its own, which ends with the call, also if nobody waits for it any more."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="batchpipe-read", daemon=True).start()
    return future
