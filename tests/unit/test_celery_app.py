"""What our processes need of Celery and kombu beyond settings."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer, Producer
from kombu.transport import redis as transport
from pydantic import SecretStr

from batchpipe.config.loading import load_settings
from batchpipe.config.settings import Settings
from batchpipe.tasks.app import countdown_of, make_app
from batchpipe.tasks.publishing import words_of_broker
from batchpipe.worker.outlive_redis import outlive_redis
from batchpipe.worker.process import end_in_time


def test_a_connection_that_redis_has_lost_is_closed_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu would hand messages back through a client that is gone, and that ends a worker with tasks in hand."""
    qos: Any = transport.QoS
    handed_back: list[object] = []
    answered: list[object] = []
    monkeypatch.setattr(qos, "restore_unacked_once", lambda self, stderr=None: handed_back.append(self))
    monkeypatch.setattr(qos, "ack", lambda self, tag: answered.append(tag))
    monkeypatch.setattr(qos, "reject", lambda self, tag, requeue=False: answered.append((tag, requeue)))
    outlive_redis()
    outlive_redis()  # a second time changes nothing
    cancelled: list[bool] = []
    watch = SimpleNamespace(cancel=lambda: cancelled.append(True))
    lost = SimpleNamespace(channel=SimpleNamespace(connection=SimpleNamespace(client=None)), _on_collect=watch)
    qos.restore_unacked_once(lost)
    assert (handed_back, cancelled) == ([], [True])
    alive = SimpleNamespace(channel=SimpleNamespace(connection=SimpleNamespace(client=object())), _on_collect=watch)
    qos.restore_unacked_once(alive)
    assert (handed_back, cancelled) == ([alive], [True])

    for answer in (qos.ack, qos.reject):
        answer(lost, "late")
    assert answered == []
    qos.ack(alive, "one")
    qos.reject(alive, "two", True)
    assert answered == ["one", ("two", True)]


def test_what_a_receiver_prints_is_no_warning() -> None:
    """Celery takes what is printed in a worker into its log, as warnings unless it is told otherwise."""
    assert make_app(load_settings().with_redis("redis://127.0.0.1:1/0")).conf.worker_redirect_stdouts_level == "INFO"


def test_a_consumer_that_has_all_it_may_take_sees_that_it_may_take_more(redis_url: str, prefix: str) -> None:
    """Celery's loop of green threads calls it so, and kombu slept for the whole two seconds."""
    outlive_redis()
    queue = Queue(f"{prefix}queue", Exchange(f"{prefix}queue"), f"{prefix}queue")
    taken: list[Any] = []
    with Connection(redis_url) as connection, connection.channel() as channel:
        producer = Producer(channel, exchange=queue.exchange, routing_key=queue.routing_key)
        with Consumer(channel, [queue], callbacks=[lambda body, message: taken.append(message)], prefetch_count=1):
            for number in range(2):
                producer.publish(number)
            connection.drain_events(timeout=2.0)
            later = threading.Timer(0.3, taken[0].ack)
            later.start()
            connection.drain_events(timeout=2.0)
            later.join()
        taken[1].ack()
        queue.bind(channel).delete()
    assert len(taken) == 2


def test_a_worker_that_is_told_to_stop_ends_though_its_broker_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """Celery takes leave of a Redis that does not answer for minutes: longer than a supervisor waits."""
    stopping, left = threading.Event(), list[int]()
    waiting = threading.Thread(target=end_in_time, args=(stopping, threading.Event(), 0.0, left.append))
    waiting.start()
    assert left == []
    stopping.set()
    waiting.join()

    assert left == [1]
    assert "the broker does not answer" in caplog.text


def test_a_worker_that_has_ended_does_not_take_its_process_along() -> None:
    """Who runs one in a program of his own goes on after it."""
    stopping, ended, left = threading.Event(), threading.Event(), list[int]()
    stopping.set()
    ended.set()
    end_in_time(stopping, ended, 60.0, left.append)

    assert left == []


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix://me:w%40rd@/run/redis.sock?db=3", "redis+socket://me:w%40rd@/run/redis.sock?virtual_host=3"),
        ("unix:///run/redis.sock?db=3&password=w%40rd", "redis+socket://:w%40rd@/run/redis.sock?virtual_host=3"),
        ("redis://me:w%40rd@h:1/3", "redis://me:w%40rd@h:1/3"),
    ],
)
def test_messages_go_to_the_database_of_the_records(address: str, wanted: str) -> None:
    """redis-py and kombu name the database of a socket, and its password, differently."""
    assert make_app(Settings(_env_file=None, redis_url=SecretStr(address))).conf.broker_url == wanted


@pytest.mark.parametrize(("broker", "seconds"), [("redis://h", 0.5), ("amqp://h//", 1), ("pyamqp://h//", 1)])
def test_a_pause_is_one_that_the_broker_can_keep(broker: str, seconds: float) -> None:
    """Celery hands RabbitMQ's quorum queues the whole seconds of a delay, and fails where there is none."""
    app = make_app(Settings(_env_file=None, redis_url=SecretStr("redis://h"), broker_url=SecretStr(broker)))
    assert countdown_of(app, 0.5) == seconds


def test_what_a_library_says_of_the_brokers_url_is_shown_without_its_password() -> None:
    """Some name the whole of it, and a submit shows that line."""
    words = words_of_broker(OSError("cannot connect to sqla+postgresql://me:secret-word@db/x"))
    assert "cannot connect to sqla+postgresql://" in words
    assert "secret-word" not in words
