"""Notifications that are to be sent: recorded before anything is sent, and until they are delivered or given up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from batchpipe.model.notifications import GIVE_UP_SECONDS, Notification
from batchpipe.store.connection import Connection

logger = logging.getLogger(__name__)

#: Notifications that wait at most; those beyond are not recorded. Of those given up, the newest are kept.
MOST_WAITING, MOST_DEAD = 10_000, 1_000
#: How long one that was delivered is remembered, so that it is not recorded twice, and one that was given up is kept.
DELIVERED_SECONDS, DEAD_SECONDS = 2 * 86_400, 30 * 86_400
#: A sender that has not reported after so many seconds has died: another one tries.
SENDING_SECONDS = 60.0


class Outbox:
    """By the id of a notification."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def add(self, note: Notification) -> bool:
        """Record it, due now. Returns False if it is known, delivered ones included, or too many wait."""
        return bool(
            self._run(
                "add_notification",
                note.id,
                *(MOST_WAITING, DELIVERED_SECONDS),
                *("type", note.type, "target", note.target, "account", note.account, "job", note.job),
                *("body", note.body),
            )[0]
            == "ok"
        )

    def take(self, most: int) -> list[Notification]:
        """Those that are due, for this caller alone for ``SENDING_SECONDS``."""
        taken = self._run("take_notifications", "", most, SENDING_SECONDS)
        return self._read([str(one) for one in taken])

    def delivered(self, note_id: str) -> None:
        self._run("end_notification", note_id, "delivered", 0, "", DELIVERED_SECONDS, MOST_DEAD)

    def failed(self, note_id: str, error: str, after: float) -> bool:
        """Try again after so many seconds. Returns False if it is given up now, a day after it was recorded."""
        answer = self._run("end_notification", note_id, "failed", after, error, GIVE_UP_SECONDS, MOST_DEAD)
        return bool(answer[0] != "dead")

    def give_up(self, note_id: str, error: str) -> None:
        """It can never be delivered."""
        self._run("end_notification", note_id, "dead", 0, error, DEAD_SECONDS, MOST_DEAD)

    def send_again(self, note_ids: Sequence[str]) -> int:
        """Try these again from now on, for another day. Returns how many of them there are."""
        return sum(self._run("resend_notification", note_id)[0] == "ok" for note_id in note_ids)

    def waiting(self, most: int) -> list[Notification]:
        """By the time of the next try."""
        return self._read(self._redis.call("zrange", f"{self._redis.prefix}outbox", 0, most - 1))

    def dead(self, most: int) -> list[Notification]:
        """Those that were given up, the newest first."""
        return self._read(self._redis.call("zrange", f"{self._redis.prefix}outbox:dead", 0, most - 1, desc=True))

    def counts(self) -> tuple[int, int]:
        """How many wait, and how many were given up."""
        pipe = self._redis.pipeline()
        pipe.zcard(f"{self._redis.prefix}outbox")
        pipe.zcard(f"{self._redis.prefix}outbox:dead")
        waiting, dead = self._redis.execute(pipe)
        return int(waiting), int(dead)

    def _run(self, name: str, note_id: str, *args: Any) -> list[Any]:
        prefix = self._redis.prefix
        keys = [f"{prefix}notification:{note_id}", f"{prefix}outbox", f"{prefix}outbox:dead"]
        return self._redis.run(name, keys, prefix, note_id, *args)

    def _read(self, ids: Sequence[str]) -> list[Notification]:
        found = []
        hashes = self._redis.hashes([f"{self._redis.prefix}notification:{one}" for one in ids])
        for note_id, fields in zip(ids, hashes, strict=True):
            try:
                found += [msgspec.convert({**fields, "id": note_id}, Notification, strict=False)] if fields else []
            except (TypeError, ValueError) as error:  # also of msgspec; made by hand, or by a newer version
                logger.warning("notification %s cannot be read: %s", note_id, error, extra={"event": "unreadable"})
        return found


msgspec.convert({"id": "", "type": "", "target": "", "account": ""}, Notification)  # see records: one thread learns it
