"""Calls that may hang, waited for in small steps: whoever waits is asked meanwhile whether it still should."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

#: A waiter is asked so often, in seconds.
TICK = 1.0

_T = TypeVar("_T")


def wait(future: Future[_T], tick: Callable[[], None]) -> _T:
    """The result of a future. ``tick`` is called every second; what it raises gives the future up and is raised."""
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
    """Let a call run in a thread of its own, which ends with the call: also when nobody waits for it any more."""
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, name="batchpipe-read", daemon=True).start()
    return future
