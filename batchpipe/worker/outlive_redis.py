"""Keep Celery workers alive while the Redis that carries their messages is away or refuses commands.

Celery and kombu (5.5 to 5.7) handle a broker that is gone. But an error from the broker (a replica after a failover, a
Redis that is full or lacks its disk, an ACL without a channel) is not a connection error to them and ends the worker.
And a worker of green threads that has taken all it may sleeps for two seconds, even if tasks end before that.
These patches of their code are kept in one place; they belong in kombu's transport/redis.py and Celery's consumer.
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

from batchpipe.model.retry import BROKER_REFUSES
from batchpipe.store.refusals import OF_BROKER, RedisAnswer, in_words

logger = logging.getLogger(__name__)

#: After so many seconds without a refusal the pauses start over.
FORGOTTEN_AFTER = 120.0
#: How long a worker of green threads that has taken all it may waits before it checks whether it may take more.
ROOM_SECONDS = 0.1
#: How often a worker that pauses looks whether it is told to stop.
_LOOK_SECONDS = 0.5


def _kept_here() -> Any:
    """kombu's in-process record of messages that are not acknowledged."""
    return virtual.QoS


def outlive_redis() -> None:
    """Keep the workers of this process alive while a Redis broker is away or refuses. A second call does no harm."""
    if getattr(transport.QoS.restore_unacked_once, "outlives_redis", False):
        return
    _outlive_lost_connections()
    _outlive_refusals()
    _notice_room()


def _outlive_lost_connections() -> None:
    """kombu closes a lost connection twice: the second time it tries to hand messages back through a client that the
    first close has removed, and the worker ends. The same happens when a task ends after its connection is lost and is
    acknowledged. The messages are not lost: kombu hands them back after the visibility time-out, and the sweep
    publishes our work again long before.
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


def _end(qos: Any, tag: str, acknowledge: Callable[[], object], *, done: bool = True) -> None:
    """Tell the broker that a message is done. If it refuses, the message may come again, and the worker takes another.

    A Redis that is full refuses the transaction in which kombu does it, but not its commands.
    """
    try:
        try:
            acknowledge()
        except RedisAnswer:
            if not done:
                raise
            with qos.channel.conn_or_acquire() as client:
                qos._remove_from_indices(tag, client.pipeline(transaction=False)).execute()
            _kept_here().ack(qos, tag)
    except RedisAnswer as error:
        logger.warning("the broker did not take the end of a task, which may come once more: %s", in_words(error))
        _kept_here().ack(qos, tag)


def _outlive_refusals() -> None:
    """Treat any error from Redis as trouble of the connection: close it, and the next one resolves the broker's name
    again. A message already taken from its queue is worked on, though kombu has not recorded it as taken.
    """
    transport.Transport.connection_errors = (*transport.Transport.connection_errors, RedisAnswer)
    hands_out: Any = transport.QoS
    note = hands_out.append

    def append(self: Any, message: Any, tag: str) -> None:
        try:
            note(self, message, tag)
        except RedisAnswer as error:
            logger.warning("a message was taken but not noted as such: %s", in_words(error))
            _kept_here().append(self, message, tag)

    hands_out.append = append
    pauses = _Pauses()
    for name in ("on_connection_error_before_connected", "on_connection_error_after_connected"):
        setattr(Consumer, name, _then_pause(getattr(Consumer, name), pauses))


def _notice_room() -> None:
    """With green threads, kombu does not notice the end of a task while it waits for a message that it may not take."""
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
    """Celery reconnects at once and is refused at once: without a pause that would loop as fast as possible."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, 0.0

    def take(self, error: Exception) -> None:
        """Wait for the next try. Ends early, with Celery's exception, if the worker is told to stop."""
        if time.monotonic() - self._last > FORGOTTEN_AFTER:
            self._seconds = 0.0
        self._seconds = BROKER_REFUSES.after(self._seconds)
        logger.error("the broker refuses: %s; next try in %g s", in_words(error, OF_BROKER), self._seconds)
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            maybe_shutdown()
            time.sleep(_LOOK_SECONDS)
        self._last = time.monotonic()
