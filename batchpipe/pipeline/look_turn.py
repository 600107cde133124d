"""The turn of a process to look at an account: kept while it lives, and soon somebody else's if it dies."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from types import TracebackType

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.store.looks import Looks

logger = logging.getLogger(__name__)


class LookTurn:
    """As a context manager it renews its lease in the background while a page is on its way: a dead process must not
    keep others from looking for as long as an answer may take.

    ``patience``: seconds of our clock that may go by without a ``step``. An answer that never ends does not keep the
    turn for ever.
    """

    def __init__(self, looks: Looks, account: str, *, lease: float, patience: float) -> None:
        self.token = uuid.uuid4().hex
        self._looks, self._account, self._lease, self._patience = looks, account, lease, patience
        self._stepped = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="batchpipe-look", daemon=True)

    def begin(self, every: float) -> float | None:
        """Returns when it began; None if another one is under way, or began less than ``every`` seconds ago."""
        return self._looks.take(self._account, self.token, lease=self._lease, every=every)

    def step(self) -> None:
        """Before each page, and at least every ``longest_sleep`` seconds between two. Raises LeaseLost."""
        self._stepped = time.monotonic()
        self._looks.renew(self._account, self.token, lease=self._lease)

    @property
    def longest_sleep(self) -> float:
        return self._lease / 3

    def __enter__(self) -> LookTurn:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def _keep(self) -> None:
        while not self._stop.wait(self._lease / 3):
            if time.monotonic() - self._stepped > self._patience:
                return
            try:
                self._looks.renew(self._account, self.token, lease=self._lease)
            except LeaseLost:
                return  # the next step says so
            except StoreUnavailable as error:
                logger.debug("the turn to look at account %r is not renewed: %s", self._account, error)
