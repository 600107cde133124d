"""A minimum rate for transfers: sockets time out only by silence. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchpipe.errors import TransientError, Unavailable

#: A silence this long within a transfer means the connection is dead; the minimum rate is measured over as long.
SILENCE_SECONDS = 60.0


class LeastRate:
    """Called with each block of a transfer; calls ``check``, and raises ``error`` (``transfer_timeout``) if, over a
    window (seconds), the bytes come slower than ``rate`` a second.
    """

    def __init__(
        self,
        what: str,
        rate: float,
        check: Callable[[], None],
        *,
        window: float = SILENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        error: type[TransientError] = Unavailable,
    ) -> None:
        self._what, self._rate, self._window = what, rate, window
        self._check, self._clock, self._error = check, clock, error
        self._begun, self._bytes = clock(), 0

    def __call__(self, count: int) -> None:
        self._check()
        self._bytes += count
        passed = self._clock() - self._begun
        if passed < self._window:
            return
        if self._bytes < self._rate * passed:
            message = (
                f"the {self._what} brought {self._bytes:,} bytes in {passed:.0f} s: too slow to go on; a line that is "
                f"no faster needs a lower TRANSFER_BYTES_PER_SECOND ({self._rate:g})"
            )
            raise self._error(message, code="transfer_timeout")
        self._begun, self._bytes = self._clock(), 0
