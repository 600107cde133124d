"""Sends the notifications that are due: signed webhooks, Slack, mail. Many at once, none for long."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.config.target import Target
from batchpipe.errors import BatchpipeError, InvalidInput, StoreUnavailable
from batchpipe.masking import without_secrets
from batchpipe.model.notifications import DELIVERY, Notification, in_words, signed_headers, slack_body
from batchpipe.storage.outgoing import POST_SECONDS, post
from batchpipe.store import Store

logger = logging.getLogger(__name__)

#: Notifications that one call sends at most, and at once: receivers that hang must not hold up the others.
MOST, AT_ONCE = 50, 10
#: The answer of a receiver that wants nothing more.
GONE = 410
_JSON = {"Content-Type": "application/json", "User-Agent": "batchpipe"}


class _Never(Exception):
    """It can never be delivered as things are; the text says why."""


class Deliverer:
    """Sends what is due in the outbox of a store."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store

    def deliver_due(self) -> int:
        """Returns how many were delivered. Takes some ten seconds if receivers hang. Raises StoreUnavailable."""
        notes = self._store.outbox.take(MOST)
        if not notes:
            return 0
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="deliver")
        futures = [pool.submit(self._deliver, note) for note in notes]
        done, _ = wait(futures, timeout=2 * POST_SECONDS)  # the others are taken again
        pool.shutdown(wait=False, cancel_futures=True)
        return sum(future.result() for future in done)

    def _deliver(self, note: Notification) -> bool:
        ids = {"event": "not_told", "job": note.job or None, "notification": note.id}
        try:
            try:
                self._send(note)
            except _Never as error:
                self._store.outbox.give_up(note.id, str(error))
                logger.error("%s of %s not sent to %s: %s", note.type, _about(note), _name(note), error, extra=ids)
            except (BatchpipeError, OSError) as error:
                self._failed(note, str(error) or type(error).__name__)
            except Exception as error:  # of a mail backend, for instance
                self._failed(note, without_secrets(f"{type(error).__name__}: {error}"))
            else:
                self._store.outbox.delivered(note.id)
                return True
        except StoreUnavailable as error:
            logger.warning("notification %s: %s", note.id, error, extra=ids)
        return False

    def _failed(self, note: Notification, why: str) -> None:
        lives = self._store.outbox.failed(note.id, why[:500], DELIVERY.pause(note.tries))
        level = logging.WARNING if lives else logging.ERROR
        words = "is tried again" if lives else "is given up: see `batchpipe notifications`"
        logger.log(
            level,
            "%s of %s not sent to %s, %s: %s",
            *(note.type, _about(note), _name(note), words, why),
            extra={"event": "not_told", "job": note.job or None, "notification": note.id},
        )

    def _send(self, note: Notification) -> None:
        target = self._settings.targets.get(note.target)
        if target is None and "://" not in note.target:
            raise InvalidInput(f"there is no target {note.target!r} in the settings of this worker", field="notify")
        if target is not None and target.kind == "mail":
            return self._mail(note, target)
        if target is not None and target.kind == "slack":
            return self._post(note, target.url.get_secret_value() if target.url else "", slack_body(note), {})
        url, secret = note.target, self._settings.notify_secret
        if target is not None:
            url, secret = target.url.get_secret_value() if target.url else "", target.secret
        if secret is None:
            raise _Never("BATCHPIPE_NOTIFY_SECRET is not set: what is sent to a URL of a job is signed with it")
        try:
            headers = signed_headers(note, secret.get_secret_value(), self._store.now())
        except ValueError:
            raise _Never("its secret is not `whsec_` and base64") from None
        return self._post(note, url, note.body.encode(), headers)

    def _post(self, note: Notification, url: str, body: bytes, headers: dict[str, str]) -> None:
        try:
            status = post(url, body, {**_JSON, **headers}, self._settings.allowed_hosts)
        except InvalidInput as error:
            raise _Never(error.message) from None
        if 200 <= status < 300:
            return
        if status == GONE:
            raise _Never("the receiver answered 410: it wants nothing more")
        raise OSError(f"the receiver answered {status}")

    def _mail(self, note: Notification, target: Target) -> None:
        send: Callable[[str, str, list[str]], None] | None = current_site().send_mail
        if send is None:
            raise OSError("this worker has no mail: start it within the Django site (`manage.py batchpipe worker`)")
        subject, text = in_words(note)
        send(" ".join(subject.split()), text, list(target.to))  # a header has one line


def _about(note: Notification) -> str:
    return f"job {note.job}" if note.job else f"account {note.account}"


def _name(note: Notification) -> str:
    return without_secrets(note.target)[:200]
