"""Task events are sent while a monitor asks for them: they cost a fifth of a short task, and nobody else reads them.

A worker starts without ``-E``. Flower asks all workers for events every few seconds (``enable_events``), and Celery's
own control command turns them on. Celery never turns them off again: here they go off a minute after the last of such
calls. One call alone (``celery control enable_events``, by a person) lasts an hour.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.worker.control import Panel

logger = logging.getLogger(__name__)

#: Who asks again within this time is a monitor; without it, events go off after as long. Seconds.
RENEWED_SECONDS = 60.0
#: How long they are sent for one call. Seconds.
ONCE_SECONDS = 3_600.0
#: How often a worker looks whether they are still wanted. Seconds.
LOOK_SECONDS = 15.0


class TaskEvents:
    """Turns the task events of one worker of an app of ours on and off."""

    def __init__(self, app: Celery, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._asked: float | None = None  #: when they were last asked for
        self._until = 0.0

    def install(self) -> None:
        """Take part in the control commands of this process, which runs one worker."""
        enable, disable = Panel.data["enable_events"], Panel.data["disable_events"]

        def enable_events(state: Any, **given: Any) -> Any:
            self.ask()
            return enable(state, **given)

        def disable_events(state: Any, **given: Any) -> Any:
            self._stop()
            return disable(state, **given)

        Panel.data["enable_events"], Panel.data["disable_events"] = enable_events, disable_events

    def watch(self, consumer: Any) -> None:
        """Look from time to time whether they are still wanted; called when the worker is ready."""
        consumer.timer.call_repeatedly(LOOK_SECONDS, self.look, (consumer,))

    def ask(self) -> None:
        """A monitor, or a person, wants them."""
        now = self._clock()
        again = self._asked is not None and now - self._asked <= RENEWED_SECONDS
        self._asked, self._until = now, now + (RENEWED_SECONDS if again else ONCE_SECONDS)
        self._app.conf.task_send_sent_event = True

    def look(self, consumer: Any) -> None:
        """Turn them off if nobody has asked for them for long enough. Celery makes the dispatcher anew with each
        connection, without them.
        """
        if self._asked is None or self._clock() < self._until:
            return
        self._stop()
        groups = getattr(consumer.event_dispatcher, "groups", None)
        if groups and "task" in groups:
            groups.discard("task")
            logger.info("no monitor asks for task events any more: they are not sent")

    def _stop(self) -> None:
        self._asked = None
        self._app.conf.task_send_sent_event = False
