"""Messages to the broker: publishing a chain, revoking its tasks, removing a queue."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from amqp import AMQPError
from celery import Celery, signature
from celery.exceptions import OperationalError as CeleryOperationalError
from kombu.exceptions import KombuError, OperationalError

from batchpipe.errors import SettingsError, TransientError
from batchpipe.masking import without_secrets
from batchpipe.model.records import JOB
from batchpipe.model.steps import STEPS
from batchpipe.pipeline.messages import Message
from batchpipe.store.refusals import OF_BROKER, RedisAnswer, RedisTrouble, in_words, unreachable
from batchpipe.tasks.app import app_in_use, check_not_eager, countdown_of, queue_of
from batchpipe.tasks.broker_clients import keep_client_of

logger = logging.getLogger(__name__)

#: Errors of a broker that cannot be reached, or that refuses (RabbitMQ: our login, or the queue; a Redis that is full
#: or read-only).
BROKER_TROUBLE = (KombuError, OperationalError, CeleryOperationalError, OSError, AMQPError, RedisTrouble)
#: kombu's errors for a URL that it does not know.
_NO_BROKER = (KeyError, ValueError, ImportError)
#: Enough for a short interruption; a broker that is down must not hold up a submit: the sweep publishes later.
_PUBLISH_RETRY = {"max_retries": 2, "interval_start": 0.0, "interval_step": 0.5, "interval_max": 1.0}
#: Priority of a transfer that needs a slot: taken when no short task waits. With Redis the highest number comes last;
#: other brokers count the other way round, or have no priorities.
_BEHIND: dict[str, Any] = {"priority": 9}


def publish(message: Message) -> None:
    """Send one chain. Raises TransientError if the broker does not take it: the record's due time brings it back."""
    try:
        app = app_in_use()
        check_not_eager(app)
        queue_of(app, message.queue)
        with app.producer_pool.acquire(block=True, timeout=10) as producer:
            over_redis = producer.connection.transport.driver_type == "redis"
            first, *rest = _links(app, message, _BEHIND if message.large and over_redis else {})
            # what a chain of Celery's sends, without the copies that it makes of each link
            further: dict[str, Any] = {"chain": rest[::-1]} if rest else {}
            if over_redis:
                further |= _in_short(app, producer.connection, message.queue)
            first.apply_async(producer=producer, retry=True, retry_policy=_PUBLISH_RETRY, **further)
    except BROKER_TROUBLE as error:
        raise TransientError(words_of_broker(error), code="broker_unavailable") from error
    except _NO_BROKER as error:
        words = f"the broker's URL cannot be used (BATCHPIPE_BROKER_URL): {type(error).__name__}"
        raise SettingsError(words) from error


def _in_short(app: Celery, connection: Any, queue: str) -> dict[str, Any]:
    """Spares a message over Redis what was done for the one before it on this connection: a client of its own, and the
    declaration of its queue, which kombu remembers, but looks up by copying the queue. What goes to a queue by its name
    needs none.
    """
    if (channel := vars(connection).get("_default_channel")) is None:  # nothing was sent yet
        return {}
    keep_client_of(channel)
    known = queue_of(app, queue)
    is_direct = known.exchange is None or known.exchange.type == "direct"
    is_declared = known.can_cache_declaration and hash(known) in connection.declared_entities
    return {"declare": []} if is_direct and is_declared else {}


def words_of_broker(error: Exception) -> str:
    answer = next((it for it in (error, error.__cause__) if isinstance(it, RedisAnswer)), None)
    if answer is not None:
        return f"the broker refused: {in_words(answer, OF_BROKER)}"
    said = without_secrets(str(error))  # the error of a library may name the URL
    if isinstance(error, AMQPError):
        return f"the broker refused: {said}: {type(error).__name__}"
    why = re.sub(r"^\[Errno -?\d+\] ", "", said).rstrip(".") or type(error).__name__
    return (
        f"the broker {unreachable(error) or f'cannot be reached: {why}'}; start it, or correct its address: {OF_BROKER}"
    )


def subject(job: str, index: int) -> str:
    """What a task is about; Flower and Celery's log show this in place of its arguments."""
    return job if index == JOB else f"{job} shard {index}"


def _links(app: Celery, message: Message, of_transfers: dict[str, Any]) -> list[Any]:
    names = message.links()
    shown = {"argsrepr": subject(message.job, message.index), "kwargsrepr": ""}
    ids = message.task_ids[-len(names) :]
    later = {"countdown": countdown_of(app, message.countdown)} if message.countdown else {}
    arguments = {"job": message.job, "shard": message.index, "epoch": message.epoch}
    # immutable: no link is handed the result of the one before it
    return [
        signature(
            f"batchpipe.{name}",
            kwargs=arguments,
            immutable=True,
            app=app,
            options={
                "task_id": task_id,
                "queue": message.queue,
                **shown,
                **(later if task_id == ids[0] else {}),
                **(of_transfers if STEPS[name].slot == "transfer" else {}),
            },
        )
        for name, task_id in zip(names, ids, strict=True)
    ]


def revoke(task_ids: Sequence[str]) -> None:
    """Tell all workers to skip these tasks. Lost when no worker is up: an accelerator, never the truth."""
    if not task_ids:
        return
    try:
        app_in_use().control.revoke(list(task_ids))
    except BROKER_TROUBLE as error:
        logger.warning("revoke not sent: %s", type(error).__name__)


def forget_queue(queue: str) -> None:
    """Remove a queue that nobody will use again: the one of a ``run`` that has ended."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            known = queue_of(app, queue).bind(connection.default_channel)
            known.declare()  # with Redis, kombu deletes a queue only if this connection knows it
            known.delete()
    except BROKER_TROUBLE as error:
        logger.debug("queue %s not removed: %s", queue, error)


def deliver_soon(queue: str) -> None:
    """Ask a worker of this queue to send the notifications that are due. What fails here the sweep does: raises nothing
    of ours, Celery's or the broker's.
    """
    try:
        app = app_in_use()
        check_not_eager(app)
        queue_of(app, queue)
        signature("batchpipe.deliver", app=app).apply_async(queue=queue, expires=60, retry=False)
    except (*BROKER_TROUBLE, *_NO_BROKER, SettingsError) as error:
        logger.debug("delivery not asked for: %s", without_secrets(str(error)))
