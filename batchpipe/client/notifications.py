"""The notifications of an installation that are not delivered: which there are, and sending them."""

from __future__ import annotations

from collections.abc import Sequence

from batchpipe.config.environment import PREFIX
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

    def of_job(self, job_id: str) -> list[Notification]:
        """Those of a job that are not delivered: they wait, or were given up."""
        return self._store.outbox.of_job(job_id)

    def why(self, note: Notification) -> str:
        """Why it is not delivered yet, as far as is known: the last reason, or what this process lacks to send it."""
        from batchpipe.tasks.delivery import Deliverer

        if note.error:
            return note.error
        lacking = Deliverer(self._settings, self._store).lacking(note)
        return f"not tried yet; this process cannot: {lacking}" if lacking else "not tried yet"

    def stuck(self, seconds: float) -> list[Notification]:
        """Those that have waited for longer, of the first hundred that wait; the oldest first."""
        before = self._store.now() - seconds
        found = [note for note in self.waiting() if note.created_at < before]
        return sorted(found, key=lambda note: note.created_at)

    def unknown_targets(self) -> list[tuple[str, str]]:
        """(setting, name) for each name in the settings that is no target in them."""
        accounts = self._settings.accounts.items()
        told = {"NOTIFY": self._settings.notify}
        told |= {f"ACCOUNTS__{name.upper()}__NOTIFY": account.notify for name, account in accounts}
        return [
            (f"{PREFIX}{setting}", name)
            for setting, names in told.items()
            for name in names
            if "://" not in name and name.lower() not in self._settings.targets
        ]

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
