"""Sends the notifications that are due: signed webhooks, Slack, mail. Many at once, and mails one by one.

Any process may do so. What a process cannot send, for its settings lack something or it has no mail, it leaves to
others; that is no try, and final only after a day.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.config.target import Target
from batchpipe.errors import BatchpipeError, InvalidInput, StoreUnavailable
from batchpipe.masking import without_secrets
from batchpipe.model.notifications import DELIVERY, Notification, in_words, signed_headers, signing_key, slack_body
from batchpipe.storage.outgoing import POST_SECONDS, check_host, post
from batchpipe.store import Store
from batchpipe.tasks.publishing import deliver_soon
from batchpipe.tasks.senders import Lane, Senders

logger = logging.getLogger(__name__)

#: Notifications that one call looks at; it takes turns over their targets, so that receivers that hang do not hold up
#: the others.
MOST = 1_000
#: A mail that is not sent after so many seconds hangs: this process begins no other one until that has ended.
HANGS_SECONDS = 30.0
#: For so long a call begins to send; those begun then get their time.
BEGIN_SECONDS = 10.0
#: How long a pass of the sweep waits that sends by itself. What it has begun goes on in threads.
INLINE_SECONDS = 3.0
#: One that this process cannot send is left to others for so long; then it is put off, so that it stands in nobody's
#: way: for so long, or a tenth of its age.
LEFT_SECONDS, PUT_OFF_SECONDS = 120.0, 60.0
#: How often a process logs that it cannot send to a target.
SAY_SECONDS = 3_600.0
#: The answer of a receiver that wants nothing more.
GONE = 410
_JSON = {"Content-Type": "application/json", "User-Agent": "batchpipe"}

Send = Callable[[Notification], None]


class _Lacking(Exception):
    """This process cannot send it; another one may. The text says what is lacking."""


class _Unwanted(Exception):
    """The receiver wants it never again."""


class Deliverer:
    """Sends what is due in the outbox of a store."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._senders = current_site().keep(Senders)

    def see_to(self, *, here: bool) -> None:
        """For a sweep: ask a worker to send what is due, if anything is, and nobody was asked just now. Where no worker
        listens it is sent ``here``, if that may be. Raises StoreUnavailable.
        """
        if not self._store.outbox.is_due():
            return
        queue = self._listened(any_of_them=not here)
        if queue is not None:
            if self._store.outbox.may_ask(queue):
                deliver_soon(queue)
        elif here:
            self.deliver_due(begin=INLINE_SECONDS, wait_for=INLINE_SECONDS)

    def _listened(self, *, any_of_them: bool) -> str | None:
        """Our queue, if a worker listens on it; else one of the others, if that will do."""
        listening = list(self._store.queues.listening())
        if self._settings.queue in listening:
            return self._settings.queue
        return random.choice(listening) if listening and any_of_them else None

    def lacking(self, note: Notification) -> str | None:
        """What this process lacks to send it; None: it can."""
        try:
            self._way(note)
        except _Lacking as error:
            return str(error)
        return None

    def deliver_due(self, *, begin: float = BEGIN_SECONDS, wait_for: float = BEGIN_SECONDS + POST_SECONDS) -> int:
        """Begin to send for so many seconds, and wait so long for what becomes of it. Returns how many were delivered
        by then. Raises StoreUnavailable.
        """
        notes = self._ours()
        if not notes:
            return 0
        ends = time.monotonic() + begin
        futures = [self._lane(note).submit(partial(self._deliver, note.id, ends)) for note in notes]
        done, late = wait(futures, timeout=wait_for)
        for lane in (self._senders.web, self._senders.mail):
            lane.cancel([*late])  # these were not taken, and stay due
        return sum(future.result() for future in done)

    def _lane(self, note: Notification) -> Lane:
        target = self._settings.targets.get(note.target)
        return self._senders.mail if target is not None and target.kind == "mail" else self._senders.web

    def _ours(self) -> list[Notification]:
        """Of those that are due, the ones that this process can send."""
        now, found = self._store.now(), list[Notification]()
        for note in self._store.outbox.due(MOST):
            try:
                self._way(note)
            except _Lacking as error:
                _say_lacking(note, str(error))
                if now - note.due_at > LEFT_SECONDS and self._store.outbox.take(note.id) is not None:
                    self._put_off(note, str(error))
                elif not note.error:
                    self._store.outbox.left(note.id, str(error)[:500])
            else:
                found.append(note)
        return _in_turn(found)

    def _deliver(self, note_id: str, ends: float) -> bool:
        """Whether it was delivered."""
        try:
            if time.monotonic() > ends or (note := self._store.outbox.take(note_id)) is None:
                return False
            return self._try(note)
        except StoreUnavailable as error:  # it is taken again
            logger.warning("notification %s: %s", note_id, error, extra={"event": "not_told", "notification": note_id})
            return False

    def _try(self, note: Notification) -> bool:
        try:
            self._way(note)(note)
        except _Lacking as error:
            self._put_off(note, str(error))
        except _Unwanted as error:
            self._store.outbox.give_up(note.id, str(error))
            self._log(logging.ERROR, note, str(error))
        except (BatchpipeError, OSError) as error:
            self._failed(note, str(error) or type(error).__name__)
        except Exception as error:  # of a mail backend, for instance
            self._failed(note, without_secrets(f"{type(error).__name__}: {error}"))
        else:
            self._store.outbox.delivered(note.id)
            return True
        return False

    def _failed(self, note: Notification, why: str) -> None:
        lives = self._store.outbox.failed(note.id, why[:500], DELIVERY.pause(note.tries))
        words = "is tried again" if lives else "is given up: see `batchpipe notifications`"
        self._log(logging.WARNING if lives else logging.ERROR, note, f"{words}: {why}")

    def _put_off(self, note: Notification, lacking: str) -> None:
        """Raises StoreUnavailable."""
        _say_lacking(note, lacking)
        age = self._store.now() - note.created_at
        pause = min(max(age / 10, PUT_OFF_SECONDS), DELIVERY.longest)
        if not self._store.outbox.put_off(note.id, lacking[:500], pause):
            self._log(logging.ERROR, note, f"is given up after a day: {lacking}")

    @staticmethod
    def _log(level: int, note: Notification, words: str) -> None:
        logger.log(level, "%s of %s not sent to %s: %s", note.type, _about(note), _name(note), words, extra=_ids(note))

    # -- how it is sent --------------------------------------------------------------------------------------------

    def _way(self, note: Notification) -> Send:
        """What sends it. Raises _Lacking; so does what it returns."""
        target = self._settings.targets.get(note.target)
        if target is None and "://" not in note.target:
            raise _Lacking(f"there is no target {note.target!r} in the settings here")
        if target is not None and target.kind == "mail":
            if (mail := current_site().send_mail) is None:
                raise _Lacking(
                    "there is no mail here: start a worker in the Django site (`manage.py batchpipe worker`)"
                )
            if (seconds := self._senders.mail.busy_for()) > HANGS_SECONDS:
                raise _Lacking(f"the mail backend here has not come to an end of a mail since {seconds:.0f} s")
            return partial(_mail, mail, target)
        address = target.url if target is not None else None
        url = address.get_secret_value() if address is not None else note.target
        with _if_allowed():
            check_host(url, self._settings.allowed_hosts)
        if target is not None and target.kind == "slack":
            return partial(self._slack, url)
        secret = target.secret if target is not None else self._settings.notify_secret
        if secret is None:
            raise _Lacking("BATCHPIPE_NOTIFY_SECRET is not set here: what is sent to a URL of a job is signed with it")
        try:
            return partial(self._webhook, url, signing_key(secret.get_secret_value()))
        except ValueError:
            raise _Lacking("its secret is not `whsec_` and base64 here") from None

    def _slack(self, url: str, note: Notification) -> None:
        self._post(url, slack_body(note), {})

    def _webhook(self, url: str, key: bytes, note: Notification) -> None:
        self._post(url, note.body.encode(), signed_headers(note, key, self._store.now()))

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        with _if_allowed():  # a private address that only other settings allow
            status = post(url, body, {**_JSON, **headers}, self._settings.allowed_hosts)
        if status == GONE:
            raise _Unwanted("the receiver answered 410: it wants nothing more")
        if not 200 <= status < 300:
            raise OSError(f"the receiver answered {status}")


@contextmanager
def _if_allowed() -> Iterator[None]:
    """An address that these settings do not allow is one that this process cannot send to."""
    try:
        yield
    except InvalidInput as error:
        raise _Lacking(error.message) from None


def _mail(send: Callable[[str, str, list[str]], None], target: Target, note: Notification) -> None:
    subject, text = in_words(note)
    send(" ".join(subject.split()), text, list(target.to))  # a header has one line


def _in_turn(notes: Sequence[Notification]) -> list[Notification]:
    """The first of each target, then the second of each, .."""
    of_target: dict[str, list[Notification]] = {}
    for note in notes:
        of_target.setdefault(note.target, []).append(note)
    return [note for some in zip_longest(*of_target.values()) for note in some if note is not None]


def _say_lacking(note: Notification, why: str) -> None:
    """Once an hour for each target."""
    if current_site().is_first_time("not_told", note.target, seconds=SAY_SECONDS):
        words = "%s of %s is left to another process, as this one cannot send it to %s: %s"
        logger.warning(words, note.type, _about(note), _name(note), why, extra=_ids(note))


def _about(note: Notification) -> str:
    return f"job {note.job}" if note.job else f"account {note.account}"


def _name(note: Notification) -> str:
    return without_secrets(note.target)[:200]


def _ids(note: Notification) -> dict[str, str | None]:
    return {"event": "not_told", "job": note.job or None, "notification": note.id}
