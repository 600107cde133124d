"""Keep Celery workers alive while a Redis that carries their messages is away, or refuses what they ask of it.

Celery and kombu (5.5 to 5.7) know a broker that is gone. One that answers with an error (a replica after a failover, a
Redis that is full or lacks its disk, an ACL without a channel) is none of their connection errors, and ends the worker.
And a worker of green threads that has as much as it may take sleeps for two seconds, whatever it has done meanwhile.
What is mended here is theirs, and so in one place; it belongs into kombu's transport/redis.py and Celery's consumer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.transport import redis as transport
from kombu.transport import virtual

from batchpipe.store.refusals import RedisAnswer, in_words

logger = logging.getLogger(__name__)

#: What kombu keeps in the process of the messages that are out.
_KEPT_HERE: Any = virtual.QoS
#: Pauses of a worker whose broker refuses it, in seconds: longer each time, up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 10.0
#: After so many seconds without a refusal the pauses start over.
FORGOTTEN_AFTER = 120.0
#: How long a worker of green threads that has all that it may take waits before it looks whether it may take more.
ROOM_SECONDS = 0.1
#: How often a worker that pauses looks whether it is told to stop.
_LOOK_SECONDS = 0.5


def outlive_redis() -> None:
    """Keep the workers of this process alive while a Redis broker is away or refuses. Twice does no harm."""
    if getattr(transport.QoS.restore_unacked_once, "outlives_redis", False):
        return
    _outlive_lost_connections()
    _outlive_refusals()
    _notice_room()


def _outlive_lost_connections() -> None:
    """kombu closes a connection that is gone twice: the second time it wants to hand messages back through a client
    that the first has taken away, and the worker ends. The same happens to the answer for a task that ends after the
    connection. The messages are not lost: kombu hands them back after the visibility time-out, and the sweep publishes
    our work again long before.
    """
    hands_back: Any = transport.QoS
    restore, ack, reject = hands_back.restore_unacked_once, hands_back.ack, hands_back.reject

    def restore_unacked_once(self: Any, stderr: Any = None) -> None:
        if gone(self):
            self._on_collect.cancel()
            return
        restore(self, stderr)

    def gone(qos: Any) -> bool:
        return getattr(qos.channel.connection, "client", None) is None

    vars(restore_unacked_once)["outlives_redis"] = True
    hands_back.restore_unacked_once = restore_unacked_once
    hands_back.ack = lambda self, tag: None if gone(self) else _end(self, tag, lambda: ack(self, tag))
    hands_back.reject = lambda self, tag, requeue=False: (
        None if gone(self) else _end(self, tag, lambda: reject(self, tag, requeue), done=not requeue)
    )


def _end(qos: Any, tag: str, tell: Callable[[], object], *, done: bool = True) -> None:
    """Tell the broker that a message is done with. If it refuses, it may come once more, and another one is taken.

    A Redis that is full refuses the transaction in which kombu does it, but not its commands.
    """
    try:
        try:
            tell()
        except RedisAnswer:
            if not done:
                raise
            with qos.channel.conn_or_acquire() as client:
                qos._remove_from_indices(tag, client.pipeline(transaction=False)).execute()
            _KEPT_HERE.ack(qos, tag)
    except RedisAnswer as error:
        logger.warning("the broker did not take the end of a task, which may come once more: %s", in_words(error))
        _KEPT_HERE.ack(qos, tag)


def _outlive_refusals() -> None:
    """Any error that Redis answers is trouble of the connection: it is closed, and the next one asks again where the
    broker's name leads to. A message that is already out of its queue is worked on, though not noted as taken.
    """
    transport.Transport.connection_errors = (*transport.Transport.connection_errors, RedisAnswer)
    hands_out: Any = transport.QoS
    note = hands_out.append

    def append(self: Any, message: Any, tag: str) -> None:
        try:
            note(self, message, tag)
        except RedisAnswer as error:
            logger.warning("a message was taken but not noted as such: %s", in_words(error))
            _KEPT_HERE.append(self, message, tag)

    hands_out.append = append
    pauses = _Pauses()
    for name in ("on_connection_error_before_connected", "on_connection_error_after_connected"):
        setattr(Consumer, name, _then_pause(getattr(Consumer, name), pauses))


def _notice_room() -> None:
    """Of green threads, kombu does not see that a task has ended while it waits for a message that it may not take."""
    poller: Any = transport.MultiChannelPoller
    get = poller.get

    def get_or_look_again(self: Any, callback: Any, timeout: float | None = None) -> Any:
        full = any(channel.active_queues and not channel.qos.can_consume() for channel in self._channels)
        return get(self, callback, ROOM_SECONDS if full and (timeout or ROOM_SECONDS) >= ROOM_SECONDS else timeout)

    poller.get = get_or_look_again


def _then_pause(close: Callable[[Any, Exception], None], pauses: _Pauses) -> Callable[[Any, Exception], None]:
    def on_connection_error(self: Any, error: Exception) -> None:
        close(self, error)
        if isinstance(error, RedisAnswer):
            pauses.take(error)

    return on_connection_error


class _Pauses:
    """Celery connects again at once, and is refused again at once: without a pause that goes on as fast as it can."""

    def __init__(self) -> None:
        self._seconds, self._last = FIRST_PAUSE, 0.0

    def take(self, error: Exception) -> None:
        """Wait for the next try. Ends early, with Celery's exception, if the worker is told to stop."""
        if time.monotonic() - self._last > FORGOTTEN_AFTER:
            self._seconds = FIRST_PAUSE
        logger.error("the broker refuses: %s; next try in %g s", in_words(error), self._seconds)
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            maybe_shutdown()
            time.sleep(_LOOK_SECONDS)
        self._seconds, self._last = min(self._seconds * 2, LONGEST_PAUSE), time.monotonic()
