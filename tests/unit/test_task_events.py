"""Task events are sent while somebody asks for them; a channel keeps its Redis client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.control import Panel
from kombu.transport import redis as transport

from batchpipe.tasks.broker_clients import keep_clients
from batchpipe.worker.task_events import ONCE_SECONDS, RENEWED_SECONDS, TaskEvents


class Worker:
    """The part of a worker that control commands see, and a clock."""

    def __init__(self) -> None:
        self.at = 1_000.0
        self.app = Celery("tests", set_as_current=False)
        self.events = TaskEvents(self.app, lambda: self.at)
        self.event_dispatcher = SimpleNamespace(groups={"worker"})

    @property
    def consumer(self) -> Worker:
        return self

    def tell(self, command: str) -> None:
        Panel.data[command](self)

    def after(self, seconds: float) -> bool:
        """Whether it sends events of tasks then."""
        self.at += seconds
        self.events.look(self)
        sends = "task" in self.event_dispatcher.groups
        assert bool(self.app.conf.task_send_sent_event) is sends
        return sends


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    for name in ("enable_events", "disable_events"):
        monkeypatch.setitem(Panel.data, name, Panel.data[name])
    worker = Worker()
    worker.events.install()
    return worker


def test_events_are_sent_while_a_monitor_asks_and_not_long_after(worker: Worker) -> None:
    """Flower asks every five seconds."""
    assert not worker.after(0)
    for _ in range(100):
        worker.tell("enable_events")
        assert worker.after(5.0)
    assert worker.after(RENEWED_SECONDS - 10)
    assert not worker.after(10)


def test_a_person_who_asks_once_has_them_for_an_hour(worker: Worker) -> None:
    worker.tell("enable_events")
    assert worker.after(ONCE_SECONDS - 1)
    assert not worker.after(2)


def test_a_person_turns_them_off_at_once(worker: Worker) -> None:
    worker.tell("enable_events")
    worker.tell("disable_events")
    assert not worker.after(0)


def made_channel(create: Any) -> Any:
    return type("Channel", (), {"pool": property(lambda self: "pool"), "_create_client": create})


def test_a_channel_keeps_its_client_as_long_as_it_has_that_pool() -> None:
    channel = transport.Channel.__new__(transport.Channel)
    assert keep_clients()
    channel.global_keyprefix = ""
    channel._pool = SimpleNamespace(connection_kwargs={})
    made: list[Any] = []

    def client(**given: Any) -> Any:
        made.append(SimpleNamespace(**given))
        return made[-1]

    channel.Client = client
    first = channel._create_client()
    assert channel._create_client() is first
    with channel.conn_or_acquire() as acquired:
        assert acquired is first
    channel._pool = SimpleNamespace(connection_kwargs={})
    assert channel._create_client() is not first
    assert len(made) == 2
    channel.__dict__.pop("_pool")


def test_a_kombu_that_works_in_another_way_is_left_as_it_is() -> None:
    def other(self: Any, *, asynchronous: bool = False, name: str = "") -> Any:
        return object()

    changed = made_channel(other)
    assert not keep_clients(changed)
    assert changed._create_client is other
