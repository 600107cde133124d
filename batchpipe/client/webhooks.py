"""Takes the provider's webhooks: checks them, records that a batch has ended, and wakes its shard.

Framework-free: a front door hands over body and headers, sends the answer, and calls ``wake_soon``, which waits for
nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchpipe.client.waker import Place, Waker
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import BatchpipeError, RecordUnreadable, StoreUnavailable
from batchpipe.model.webhooks import MOST_BYTES, Malformed, NotSigned, Signed, Verifier

if TYPE_CHECKING:
    from batchpipe.client.job import ClientLike
    from batchpipe.store import Store
    from batchpipe.store.news import Told

logger = logging.getLogger(__name__)

#: A message that took longer to publish, in seconds, shows a broker in trouble: the next ones are left to the sweep.
SLOW_SECONDS, REST_SECONDS = 1.0, 10.0
#: How often a process logs that it refuses webhooks, in seconds.
SAY_SECONDS = 60.0


@dataclass(frozen=True)
class WebhookAnswer:
    """The status and the JSON of an answer. ``place``: the shard to wake."""

    status: int
    body: dict[str, Any]
    place: Place | None = None


def refused(status: int, code: str, message: str) -> WebhookAnswer:
    """An answer in the form of all errors."""
    return WebhookAnswer(status, {"error": {"code": code, "message": message}})


TOO_LARGE = refused(413, "too_large", f"a webhook has {MOST_BYTES} bytes at most")
TOO_SLOW = refused(408, "too_slow", "its body did not come in time")
ONLY_POST = refused(405, "method_not_allowed", "only POST")
UNAVAILABLE = refused(503, "unavailable", "it cannot be recorded just now; send it again")
NOT_SET_UP = refused(404, "not_set_up", "no webhooks are received here")


def out_of_order(error: BatchpipeError) -> WebhookAnswer:
    """The settings of this process are wrong: the log says how, and the sender is asked to come again."""
    _say(str(error))
    return UNAVAILABLE


class WebhookReceiver:
    """For the accounts of these settings that have a webhook secret."""

    def __init__(self, settings: Settings, store: Callable[[], Store], republish: Callable[[str, int], object]) -> None:
        """``republish`` publishes the message of a shard that is due. Raises SettingsError."""
        self.secrets = settings.webhook_secrets()
        self._verifier = Verifier(self.secrets)
        self._store, self._republish = store, republish
        self._rests_until = 0.0
        self.waker = Waker(self.wake)
        self._is_warm = False  # the first message takes longer: Celery is imported, and the broker connected to

    def receive(self, body: bytes, headers: Mapping[str, str], account: str | None = None) -> WebhookAnswer:
        """Check one webhook and record what it says. Raises nothing of ours.

        ``headers``: their names in lower case. ``account``: the one that the URL names; only its secrets count.

        200: recorded, or it concerns nobody here; 400: refused, and nothing was written; 404: no account has a secret;
        503: to be sent again.
        """
        checked = self.check(body, headers, account)
        return checked if isinstance(checked, WebhookAnswer) else self.record([checked])[0]

    def check(self, body: bytes, headers: Mapping[str, str], account: str | None = None) -> Signed | WebhookAnswer:
        """The first half of ``receive``, which asks nobody: what is to be recorded, or the answer."""
        if len(body) > MOST_BYTES:
            return TOO_LARGE
        if not self.secrets:
            _say("no account has a WEBHOOK_SECRET")
            return NOT_SET_UP
        named = account.lower() if account is not None else None
        try:
            event = self._verifier.check(body, headers, named)
        except NotSigned as error:  # the answer is the same for any account: a stranger learns nothing of them
            if named is None or named in self.secrets:
                _say(f"{error}: is WEBHOOK_SECRET the one of this endpoint, and is this host's clock right?")
            else:
                _say("its URL names an account that has no WEBHOOK_SECRET")
            return refused(400, "bad_signature", str(error))
        except Malformed as error:
            _say(str(error))
            return refused(400, "malformed", str(error))
        if event.batch_id is None:
            return WebhookAnswer(200, {"received": True, "effect": "ignored"})
        return event

    def record(self, events: Sequence[Signed]) -> list[WebhookAnswer]:
        """The second half, for several at once: the answer to each."""
        try:
            told = self._store().news.record_many([(it.id, it.batch_id or "", it.accounts) for it in events])
        except StoreUnavailable as error:
            _not_recorded(error)
            return [UNAVAILABLE] * len(events)
        return [_answer(event, one) for event, one in zip(events, told, strict=True)]

    def wake_soon(self, place: Place | None) -> None:
        """Wake the shard of an answer, if it has one, in a thread: the sender does not wait for the broker."""
        if place is not None:
            self.waker.soon(place)

    def wake(self, place: Place) -> None:
        """Publish the message of a shard that ``receive`` made due. What fails here the sweep does: raises nothing.

        While the broker is in trouble nobody waits for it.
        """
        begun = time.monotonic()
        if begun < self._rests_until:
            return
        try:
            self._republish(*place)
        except BatchpipeError as error:
            logger.warning("not woken, a sweep will do that: %s", error, extra={"event": "webhook_not_woken"})
        if time.monotonic() - begun > SLOW_SECONDS and self._is_warm:
            self._rests_until = time.monotonic() + REST_SECONDS
        self._is_warm = True


def _answer(event: Signed, told: Told | RecordUnreadable) -> WebhookAnswer:
    if isinstance(told, RecordUnreadable):
        _not_recorded(told)
        return UNAVAILABLE
    said = {"event": "webhook", "batch": event.batch_id, "type": event.type, "effect": told.what}
    logger.debug("webhook: %s of %s: %s", event.type, event.batch_id, told.what, extra=said)
    return WebhookAnswer(200, {"received": True, "effect": told.what}, told.place)


def _not_recorded(error: BatchpipeError) -> None:
    logger.warning("webhooks were not recorded: %s", error, extra={"event": "webhook_not_recorded"})


def _say(why: str) -> None:
    """Log why webhooks are refused: once a minute for each reason, for anybody may send them."""
    if current_site().is_first_time("webhook_refused", why, seconds=SAY_SECONDS):
        logger.warning("a webhook was refused: %s", why, extra={"event": "webhook_refused"})


def receiver_of(client: ClientLike) -> WebhookReceiver:
    """For the accounts of a client's settings. Raises SettingsError."""

    def republish(job_id: str, index: int) -> object:
        from batchpipe.tasks.runtime import runtime

        return runtime(client.settings).shard_runner.republish(job_id, index, when="overdue")

    return WebhookReceiver(client.settings, lambda: client.store, republish)
