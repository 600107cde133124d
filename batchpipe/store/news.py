"""What webhooks tell: which batches have ended, and whether their coming can be relied on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchpipe.errors import RecordUnreadable
from batchpipe.store.connection import Connection
from batchpipe.store.records import parse_member

#: How long the id of a webhook is remembered, in seconds: longer than its signature is valid (five minutes each way).
REMEMBERED_SECONDS = 3_600


@dataclass(frozen=True)
class Told:
    """What a webhook changed. ``place``: the shard that is due, and that nobody has published yet."""

    what: str  #: woken, known, early or repeated: see ``record_news.lua``
    place: tuple[str, int] | None


@dataclass(frozen=True)
class WebhookState:
    """The webhooks of an account, as they came. Times in unix seconds; None: never."""

    seen: float | None  #: the latest one with a right signature
    ours: float | None  #: the latest one about a batch of ours
    trusted: bool  #: ends of batches come as webhooks, so nobody need look often


class News:
    """By the name of the account in the settings."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def record(self, webhook_id: str, batch_id: str, accounts: Sequence[str]) -> Told:
        """Record that a batch has ended, said by the webhook of this id, which a secret of these accounts has signed.

        Its shard is due at once; the same script remembers the id. Raises StoreUnavailable, RecordUnreadable.
        """
        told = self.record_many([(webhook_id, batch_id, accounts)])[0]
        if isinstance(told, RecordUnreadable):
            raise told
        return told

    def record_many(self, news: Sequence[tuple[str, str, Sequence[str]]]) -> list[Told | RecordUnreadable]:
        """The same for several (webhook, batch, accounts). Raises StoreUnavailable: then some may be recorded."""
        prefix = self._redis.prefix
        calls = [
            ([f"{prefix}webhook:{webhook_id}", f"{prefix}due"], [prefix, batch_id, REMEMBERED_SECONDS, *accounts])
            for webhook_id, batch_id, accounts in news
        ]
        return [
            answer
            if isinstance(answer, RecordUnreadable)
            else Told(answer[0], parse_member(answer[1]) if answer[1] else None)
            for answer in self._redis.run_many("record_news", calls)
        ]

    def state(self, account: str) -> WebhookState:
        """Raises StoreUnavailable."""
        seen, ours, trusted = self._redis.run("read_webhooks", [f"{self._redis.prefix}webhooks:{account}"])
        return WebhookState(float(seen) if seen else None, float(ours) if ours else None, bool(int(trusted)))

    def trusted(self, account: str) -> bool:
        """Whether the ends of this account's batches come as webhooks, so that looks may be a safety net: one about a
        batch of ours came within a day, and none that was due within the last minutes has failed to come.
        """
        return self.state(account).trusted
