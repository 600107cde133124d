"""Ctrl-C and SIGTERM as KeyboardInterrupt, also where Python would drop it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType

#: How much later an interrupt that came at a bad moment comes again, seconds.
_AGAIN_SECONDS = 0.05


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt: a moment later if it came within a finalizer.

    Python prints and drops what is raised in ``__del__`` and in the callbacks of the import system's own locks: the
    command would go on as if nobody had pressed Ctrl-C.
    """
    if not _is_dropped_in(frame):
        raise KeyboardInterrupt
    later = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


def _is_dropped_in(frame: FrameType | None) -> bool:
    if frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        return True  # not a module that is being imported, which may take for ever
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def take_interrupts() -> None:
    """Let Ctrl-C end this process by ``interrupt``, unless somebody ignores or handles it already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # not the main thread: signals are not ours
            signal.signal(signal.SIGINT, interrupt)
