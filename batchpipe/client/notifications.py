"""The notifications of an installation that are not delivered: which there are, and sending them."""

from __future__ import annotations

from collections.abc import Sequence

from batchpipe.config.settings import Settings
from batchpipe.model.notifications import Notification
from batchpipe.store import Store
from batchpipe.store.outbox import Undelivered


class Notifications:
    """Each method raises StoreUnavailable."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings

    def waiting(self, most: int = 100) -> list[Notification]:
        """Those that wait for their next try."""
        return self._store.outbox.waiting(most)

    def dead(self, most: int = 100) -> list[Notification]:
        """Those that were given up."""
        return self._store.outbox.dead(most)

    def counts(self) -> Undelivered:
        """How many wait for their next try, and how many were given up."""
        return self._store.outbox.counts()

    def send_again(self, note_ids: Sequence[str]) -> int:
        """Try these now, and for another day. Returns how many of them there are."""
        return self._store.outbox.send_again(note_ids)

    def deliver(self) -> int:
        """Send those that are due. Returns how many were delivered."""
        from batchpipe.tasks.runtime import runtime

        return runtime(self._settings).deliverer.deliver_due()
