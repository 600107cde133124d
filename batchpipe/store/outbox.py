"""Notifications that are to be sent: recorded before anything is sent, and until they are delivered or given up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import msgspec

from batchpipe.model.notifications import GIVE_UP_SECONDS, TOLD_AGAIN_SECONDS, Notification
from batchpipe.store.connection import Connection

logger = logging.getLogger(__name__)

#: Notifications that wait at most; those beyond are not recorded. Of those given up, the newest are kept.
MOST_WAITING, MOST_DEAD = 10_000, 1_000
#: How long one that was delivered is remembered, so that it is not recorded twice, and one that was given up is kept.
DELIVERED_SECONDS, DEAD_SECONDS = 2 * 86_400, 30 * 86_400
#: A sender that has not reported after so many seconds has died: another one tries.
SENDING_SECONDS = 60.0
#: A worker that was asked to send what is due has so many seconds before another one is asked.
ASKED_SECONDS = 10

#: What became of a notification that is to be recorded. ``full``: too many wait.
Added = Literal["ok", "known", "full"]
#: What is read of those that are due: enough to know who can send them.
_OUTSIDE = ("type", "target", "account", "job", "created_at", "due_at", "tries", "error", "dead")


class Undelivered(NamedTuple):
    """How many wait, and how many were given up."""

    waiting: int
    given_up: int

    @property
    def any(self) -> bool:
        return bool(self.waiting or self.given_up)

    @property
    def full(self) -> bool:
        """So many wait that no further one is recorded."""
        return self.waiting >= MOST_WAITING


class Outbox:
    """By the id of a notification."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._outbox = f"{connection.prefix}outbox"
        self._dead = f"{connection.prefix}outbox:dead"

    def add(self, note: Notification) -> Added:
        """Record it, due now. ``known``: it is, as a delivered one, too, or the same was told within six hours."""
        prefix = self._redis.prefix
        answer = self._redis.run(
            "add_notification",
            [self._key(note.id), self._outbox, f"{prefix}told:{note.once or note.id}"],
            *(prefix, note.id, MOST_WAITING, int(TOLD_AGAIN_SECONDS) if note.once else 0),
            *("type", note.type, "target", note.target, "account", note.account, "job", note.job),
            *("body", note.body),
        )
        return cast(Added, str(answer[0]))

    def is_due(self) -> bool:
        """Whether there is anything to be sent now."""
        return bool(self._due(1))

    def may_ask(self, queue: str) -> bool:
        """Whether a worker of this queue may be asked to send what is due: True for one caller every ten seconds."""
        return bool(self._redis.call("set", f"{self._outbox}:asked:{queue}", "1", nx=True, ex=ASKED_SECONDS))

    def due(self, most: int) -> list[Notification]:
        """Those that are due, without their bodies; others may see them, too: ``take`` them before they are sent."""
        ids = self._due(most)
        found = self._read(ids, _OUTSIDE)
        if bad := list({*ids} - {note.id for note in found}):
            self._take(bad)  # gone, or put off: nobody can read them
        return found

    def take(self, note_id: str) -> Notification | None:
        """It is this caller's alone for ``SENDING_SECONDS``; None: another one was quicker."""
        return next(iter(self._read(self._take([note_id]))), None)

    def delivered(self, note_id: str) -> None:
        self._end(note_id, "delivered")

    def failed(self, note_id: str, error: str, after: float) -> bool:
        """Try again after so many seconds. Returns False if it is given up now, a day after it was recorded."""
        return self._end(note_id, "failed", after, error) != "dead"

    def put_off(self, note_id: str, lacking: str, after: float) -> bool:
        """The caller cannot send it, for it lacks something: this counts as no try. Returns False if it is given up
        now, as ``failed`` does.
        """
        return self._end(note_id, "lacking", after, lacking) != "dead"

    def left(self, note_id: str, lacking: str) -> None:
        """The caller cannot send it, and leaves it to others: it stays due, and people see why."""
        self._end(note_id, "left", 0, lacking)

    def of_job(self, job_id: str, most: int = 1_000) -> list[Notification]:
        """Those of a job that are not delivered, without their bodies; ``most`` of the installation are looked at."""
        ids = [
            *self._redis.call("zrange", self._outbox, 0, most - 1),
            *self._redis.call("zrange", self._dead, 0, most - 1, desc=True),
        ]
        return [note for note in self._read(ids, _OUTSIDE) if note.job == job_id]

    def give_up(self, note_id: str, error: str) -> None:
        """It can never be delivered."""
        self._end(note_id, "dead", 0, error)

    def send_again(self, note_ids: Sequence[str]) -> int:
        """Try these again from now on, for another day. Returns how many of them there are."""
        calls = ((self._key(one), self._outbox, self._dead) for one in note_ids)
        prefix = self._redis.prefix
        answers = (
            self._redis.run("resend_notification", keys, prefix, one) for keys, one in zip(calls, note_ids, strict=True)
        )
        return sum(answer[0] == "ok" for answer in answers)

    def waiting(self, most: int) -> list[Notification]:
        """By the time of the next try."""
        return self._read(self._redis.call("zrange", self._outbox, 0, most - 1))

    def dead(self, most: int) -> list[Notification]:
        """Those that were given up, the newest first."""
        return self._read(self._redis.call("zrange", self._dead, 0, most - 1, desc=True))

    def counts(self) -> Undelivered:
        pipe = self._redis.pipeline()
        pipe.zcard(self._outbox)
        pipe.zcard(self._dead)
        waiting, dead = self._redis.execute(pipe)
        return Undelivered(int(waiting), int(dead))

    def _key(self, note_id: str) -> str:
        return f"{self._redis.prefix}notification:{note_id}"

    def _due(self, most: int) -> list[str]:
        until = f"{self._redis.now():.6f}"
        return list(self._redis.call("zrangebyscore", self._outbox, "-inf", until, start=0, num=most))

    def _take(self, ids: Sequence[str]) -> list[str]:
        taken = self._redis.run("take_notifications", [self._outbox], self._redis.prefix, SENDING_SECONDS, *ids)
        return [str(one) for one in taken]

    def _end(self, note_id: str, what: str, after: float = 0.0, error: str = "") -> str:
        times = GIVE_UP_SECONDS, DELIVERED_SECONDS, DEAD_SECONDS
        keys = [self._key(note_id), self._outbox, self._dead]
        args = self._redis.prefix, note_id, what, after, error, *times, MOST_DEAD
        return str(self._redis.run("end_notification", keys, *args)[0])

    def _read(self, ids: Sequence[str], fields: Sequence[str] = ()) -> list[Notification]:
        found = []
        hashes = self._redis.hashes([self._key(one) for one in ids], fields)
        for note_id, values in zip(ids, hashes, strict=True):
            try:
                found += [msgspec.convert({**values, "id": note_id}, Notification, strict=False)] if values else []
            except (TypeError, ValueError) as error:  # also of msgspec; made by hand, or by a newer version
                logger.warning("notification %s cannot be read: %s", note_id, error, extra={"event": "unreadable"})
        return found


msgspec.convert({"id": "", "type": "", "target": "", "account": ""}, Notification)  # see records: one thread learns it
