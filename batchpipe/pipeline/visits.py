"""Several turns in one visit of a worker: what a turn leads to is done at once, where nothing stands in the way.

A message costs more than the turn of a small shard. So whoever has uploaded a shard creates its batch, too, and whoever
has seen a small batch end downloads it. Each turn is claimed, fenced and recorded as ever, and a process that dies in
between leaves a record that is due. Where a turn has to wait, the chain goes on as a message from there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from batchpipe.config.limits import out_of_time
from batchpipe.errors import StoreUnavailable
from batchpipe.model.retry import REDIS_PAUSE_SECONDS
from batchpipe.model.steps import STEPS
from batchpipe.pipeline.ahead import Ahead
from batchpipe.pipeline.messages import Continue, Message, Next, Publish, Retry

logger = logging.getLogger(__name__)

#: Takes the turn of a step: its name, the job, the shard's index or JOB, the epoch. Raises StoreUnavailable.
Turn = Callable[[str, str, int, int], Next]


class Visits:
    """Stands between the runners and the broker: small messages that a visit publishes are kept, and done in it."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self.ahead = Ahead()
        self._here = threading.local()

    def publish(self, message: Message) -> None:
        """Send a message; or, of a visit's first small one, keep it for the visit."""
        kept: list[Message] | None = getattr(self._here, "kept", None)
        if kept is None or kept or not message.small or message.countdown:
            self._publish(message)
        else:
            kept.append(message)
            self.ahead.keeps = False

    def go_on(
        self, message: Message, first: Callable[[], Next], turn: Turn, may_go_on: Callable[[], bool] = lambda: True
    ) -> Next:
        """Take the turn ``first`` of a message's first link, and those that follow it. Returns how the chain goes on.

        Raises what ``first`` raises. ``may_go_on``: False if this process is told to stop.
        """
        try:
            with self._keeping(may_go_on) as kept:
                links = message.links()
                self.ahead.link = next(iter(links[1:]), "")
                following = self._chain(links, message, first(), turn, may_go_on)
            for led_to in kept:
                following = replace(following, why=self._instead_of_sending(led_to, following.why, turn, may_go_on))
            return following
        finally:
            self.ahead.keep(None)  # a turn that raised after its end has left the lease of the next one here

    @contextmanager
    def _keeping(self, may_go_on: Callable[[], bool]) -> Iterator[list[Message]]:
        before, ahead = getattr(self._here, "kept", None), self.ahead
        kept: list[Message] = []
        self._here.kept, ahead.keeps, ahead.may_go_on = kept, True, may_go_on
        try:
            yield kept
        except BaseException:
            while kept:
                self._send(kept.pop())  # what was raised first must be what is raised
            raise
        finally:
            self._here.kept, ahead.keeps, ahead.link = before, False, ""

    def _chain(
        self, links: list[str], message: Message, following: Next, turn: Turn, may_go_on: Callable[[], bool]
    ) -> Next:
        """The next links of a message's chain, as long as each is short, or the shard is small."""
        why = following.why
        for link in links[1:]:
            if isinstance(following, Continue) and following.link and following.link != link:
                continue  # the turn before has done it
            ready = isinstance(following, Continue) and not following.after and (self.ahead.is_claimed or may_go_on())
            self.ahead.link = _after(links, link)
            if not (ready and (STEPS[link].slot is None or getattr(following, "small", False))):
                break
            following = _taken(link, message, turn)
            why = " - ".join(part for part in (why, following.why) if part)
            if isinstance(following, Retry):  # of the link that runs now, not of the one whose message this is
                following = Continue(after=following.after, link=link)
                break
            if isinstance(following, Continue):
                following = replace(following, link=_after(links, link))
        return replace(following, why=why)

    def _instead_of_sending(self, message: Message, why: str, turn: Turn, may_go_on: Callable[[], bool]) -> str:
        """Do what a kept message asks for. Returns ``why`` and what became of it; what has to wait is sent."""
        if not (self.ahead.is_claimed or may_go_on()):
            self._send(message)
            return why
        link = message.links()[0]
        following = self.go_on(message, lambda: _taken(link, message, turn), turn, may_go_on)
        if isinstance(following, Retry):
            self._send(replace(message, countdown=following.after))
        elif isinstance(following, Continue) and (rest := following.link or _after(message.links(), link)):
            self._send(replace(message, stage=STEPS[rest].stages[0], countdown=following.after))
        return " - ".join(part for part in (why, following.why) if part)

    def _send(self, message: Message) -> None:
        try:
            self._publish(message)
        except Exception as error:  # the record is due, and a sweep publishes it
            ids = {"event": "not_published", "job": message.job, "shard": message.index}
            logger.warning("not sent to the workers yet, a sweep will do that: %s", error, extra=ids)


def _taken(link: str, message: Message, turn: Turn) -> Next:
    """A further turn of a visit: if it ends in no answer, its message comes a little later."""
    try:
        return turn(link, message.job, message.index, message.epoch)
    except StoreUnavailable as error:
        return Retry(REDIS_PAUSE_SECONDS, str(error), "redis")
    except out_of_time():
        return Retry(REDIS_PAUSE_SECONDS, "the worker's soft time limit was met")


def _after(links: list[str], link: str) -> str:
    return next(iter(links[links.index(link) + 1 :]), "")
