"""Questions to the broker: how much waits in a queue, who listens, and what it refuses."""

from __future__ import annotations

from amqp import ChannelError

from batchpipe.errors import SettingsError
from batchpipe.store.refusals import OF_BROKER, RedisAnswer, in_words
from batchpipe.tasks.app import app_in_use
from batchpipe.tasks.publishing import BROKER_TROUBLE


def waiting_in(queue: str) -> int | None:
    """How many messages wait in a queue, including those of lower priority; None if this broker does not tell."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            # a channel of its own: a broker that does not know the queue closes it
            return int(connection.channel().queue_declare(queue, passive=True).message_count)
    except ChannelError as error:
        return 0 if str(error.reply_code) == "404" else None
    except (*BROKER_TROUBLE, SettingsError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None


def queues_of_workers() -> dict[str, list[str]] | None:
    """Queue -> names of the workers that answer within a second; None if the broker does not answer."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            replies = app.control.inspect(timeout=1.0, connection=connection).active_queues() or {}
    except BROKER_TROUBLE:
        return None
    found: dict[str, list[str]] = {}
    for worker, queues in replies.items():
        for item in queues:
            found.setdefault(item.get("name"), []).append(worker)
    return found


def broker_refusal() -> str | None:
    """What a Redis broker refuses to workers of this user, in one line; None if nothing, or for another broker.

    This tries what a worker does at its start: subscribe to broadcasts, and send events.
    """
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            channel = connection.default_channel
            if connection.transport.driver_type != "redis":
                return None
            with channel.client.pubsub() as heard:
                heard.psubscribe(f"{channel.keyprefix_fanout}{app.conf.control_exchange}.pidbox")
                heard.parse_response()
            replies = f"batchpipe-check.reply.{app.conf.control_exchange}.pidbox"
            for key in (
                channel.keyprefix_queue % "batchpipe-check",
                replies,
            ):  # there is nothing to delete, so nothing is written
                channel.client.lpushx(f"{channel.global_keyprefix}{key}", "")
            channel.client.publish(f"{channel.keyprefix_fanout}{app.conf.event_exchange}/batchpipe.check", "")
    except BROKER_TROUBLE as error:
        return next((in_words(it, OF_BROKER) for it in (error, error.__cause__) if isinstance(it, RedisAnswer)), None)
    return None
