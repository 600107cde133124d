"""What a message costs beyond the command that pushes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from celery import Celery, signals

from batchpipe.config.loading import load_settings
from batchpipe.config.site import current_site
from batchpipe.model.records import JOB, State
from batchpipe.pipeline.messages import Message
from batchpipe.store import new_task_ids
from batchpipe.tasks.app import make_app
from batchpipe.tasks.broker_clients import keep_client_of
from batchpipe.tasks.publishing import publish


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    site = current_site()
    site.settings = load_settings().with_redis(redis_url)
    site.app = made = make_app(site.settings)
    yield made
    made.close()


def message(queue: str) -> Message:
    return Message("job_x", JOB, 1, State.PENDING, new_task_ids(1), queue)


def test_a_later_message_over_redis_takes_the_client_of_the_first(app: Celery, redis_url: str, prefix: str) -> None:
    """kombu builds one for each message."""
    queue = f"{prefix}queue"
    for _ in range(4):
        publish(message(queue))
    with app.producer_pool.acquire(block=True) as producer:
        channel = producer.channel
        client = channel._create_client()
        assert channel._create_client() is client

    with redis.Redis.from_url(redis_url) as store:
        assert store.llen(queue) == 4


def test_a_queue_is_declared_by_the_first_message_over_a_connection(app: Celery, redis_url: str, prefix: str) -> None:
    """The later ones say that there is nothing to declare; kombu would look that up by a copy of the queue."""
    declared: list[int] = []

    def note(declare: list[object], **_: object) -> None:
        declared.append(len(declare))

    signals.before_task_publish.connect(note)
    queue = f"{prefix}queue"
    for _ in range(3):
        publish(message(queue))
    assert declared == [1, 0, 0]
    with redis.Redis.from_url(redis_url) as store:
        assert store.exists(f"_kombu.binding.{queue}")


def test_a_channel_that_has_lost_its_connections_makes_a_new_client(app: Celery, prefix: str) -> None:
    """The pool goes with the connections, and the client with the pool."""
    publish(message(f"{prefix}queue"))
    with app.producer_pool.acquire(block=True) as producer:
        channel = producer.channel
        assert keep_client_of(channel)
        client = channel._create_client()
        channel._disconnect_pools()
        assert channel._create_client() is not client


def test_a_channel_of_another_broker_is_left_as_it_is() -> None:
    """Only Redis' channels make clients."""

    class Other:
        pass

    channel = Other()
    assert not keep_client_of(channel)
    assert not keep_client_of(channel)
    assert not hasattr(channel, "_create_client")
