"""How often batches are looked at: seldom where webhooks tell of their ends, for then looks are only a safety net."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchpipe.model.records import JobRecord, ShardRecord
from batchpipe.pipeline.steps.poll import Pace

#: For so long this process believes what it has read of an account, in seconds: polls need not ask Redis each time.
BELIEVED_SECONDS = 10.0


class Trust:
    """Whether webhooks are relied on, by account. Safe between threads: at worst two read the same."""

    def __init__(self, read: Callable[[str], bool]) -> None:
        """``read`` asks Redis about an account: see ``News.trusted``."""
        self._read = read
        self._known: dict[str, tuple[float, bool]] = {}

    def of(self, account: str) -> bool:
        """Raises StoreUnavailable."""
        at, trusted = self._known.get(account, (0.0, False))
        now = time.monotonic()
        if account not in self._known or now - at > BELIEVED_SECONDS:
            trusted = self._read(account)
            self._known[account] = (now, trusted)
        return trusted

    def pace(self, job: JobRecord, shard: ShardRecord, usual: Pace) -> Pace:
        """The pace of a shard's polls. What we cancel is watched as closely as ever. Raises StoreUnavailable."""
        if job.cancel or shard.overdue_at is not None or not self.of(job.account):
            return usual
        return Pace(usual.longest, usual.longest)
