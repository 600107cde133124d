"""What beat sends does not pile up while no worker is there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
from celery import Celery
from celery.beat import Scheduler

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.pipeline.beat import LISTENED_SECONDS, MOVING_SECONDS, may_send
from batchpipe.store import Store
from batchpipe.tasks import celery_tasks as tasks
from batchpipe.tasks.app import make_app
from batchpipe.tasks.runtime import runtime
from batchpipe.worker import schedule_tasks  # noqa: F401 - its task is known once it is imported

NAME, QUEUE = "batchpipe.sweep", "q"


@pytest.fixture
def settings(redis_url: str, prefix: str, tmp_path: Path) -> Settings:
    """A queue of this test alone."""
    chosen: dict[str, Any] = {"redis_url": redis_url, "prefix": prefix, "queue": prefix, "home": tmp_path}
    made = Settings(_env_file=None, **chosen)
    current_site().settings = made
    return made


@pytest.fixture
def app(settings: Settings) -> Celery:
    made = make_app(settings)
    current_site().app = made
    made.set_current()
    return made


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def beat(app: Celery, entries: dict[str, dict[str, Any]]) -> Callable[[], None]:
    """One tick of a real beat, in which every entry is due."""
    scheduler = Scheduler(app)
    scheduler.merge_inplace(entries)

    def tick() -> None:
        for name, entry in list(scheduler.schedule.items()):
            if name in entries:
                scheduler.apply_entry(entry)

    return tick


def entries(queue: str) -> dict[str, dict[str, Any]]:
    """As schedulers have them that keep entries in a database: without ``expires``."""
    names = ("batchpipe.sweep", "batchpipe.schedules")
    return {name: {"task": name, "schedule": 5.0, "options": {"queue": queue}} for name in names}


def test_beat_leaves_one_message_of_each_task_where_no_worker_is(app: Celery, settings: Settings, server: Any) -> None:
    """It was 17,280 a day. A queue that is emptied gets them again."""
    tick = beat(app, entries(settings.queue))
    for _ in range(2):
        for _ in range(20):
            tick()
        waiting = [orjson.loads(text)["headers"]["task"] for text in server.lrange(settings.queue, 0, -1)]
        assert len(waiting) == len(set(waiting)) > 0
        server.delete(settings.queue)


def test_a_message_expires_though_its_entry_does_not_say_so(app: Celery, settings: Settings, server: Any) -> None:
    beat(app, entries(settings.queue))()
    waiting = server.lrange(settings.queue, 0, -1)
    assert waiting
    assert [text for text in waiting if orjson.loads(text)["headers"]["expires"] is None] == []


def test_who_sends_a_look_himself_is_not_kept_from_it(app: Celery, settings: Settings, server: Any) -> None:
    for _ in range(3):
        tasks.sweep.apply_async(queue=settings.queue)
    assert server.llen(settings.queue) == 3


def test_a_worker_that_takes_it_lets_beat_send_the_next(store: Store, clock: Any) -> None:
    """However long the queue is."""
    for _ in range(3):
        assert may_send(store, NAME, QUEUE, lambda queue: 7)
        clock.advance(5)
        assert not may_send(store, NAME, QUEUE, lambda queue: 7)
        store.queues.note_beat(NAME, taken=store.now())
        clock.advance(5)


def test_a_queue_that_moves_or_is_listened_on_gets_it_now_and_then(store: Store, clock: Any) -> None:
    """The message may have expired in a queue that never runs empty: it heals, at a bounded pace."""
    assert may_send(store, NAME, QUEUE, lambda queue: 7)
    clock.advance(MOVING_SECONDS + 1)
    assert not may_send(store, NAME, QUEUE, lambda queue: 7)
    store.queues.note_taken(QUEUE)
    assert may_send(store, NAME, QUEUE, lambda queue: 7)
    clock.advance(LISTENED_SECONDS + 1)
    assert not may_send(store, NAME, QUEUE, lambda queue: 7)
    store.queues.note_listening("w1", [QUEUE])
    assert may_send(store, NAME, QUEUE, lambda queue: 7)
    assert not may_send(store, NAME, QUEUE, lambda queue: 7)


def test_a_queue_of_which_nothing_is_taken_for_a_month_gets_it_less_and_less_often(store: Store, clock: Any) -> None:
    """A worker that hangs still says that it listens: it was one message more every ten minutes."""
    sent = 0
    for _ in range(30 * 48):
        store.queues.note_listening("w", [QUEUE])
        sent += may_send(store, NAME, QUEUE, lambda queue: 7)
        clock.advance(1_800)
    assert 30 <= sent <= 45
    store.queues.note_taken(QUEUE)
    store.queues.note_beat(NAME, taken=store.now())
    assert may_send(store, NAME, QUEUE, lambda queue: 1)
    clock.advance(LISTENED_SECONDS + 1)
    store.queues.note_listening("w", [QUEUE])
    assert may_send(store, NAME, QUEUE, lambda queue: 1)  # as often as at first


@pytest.mark.parametrize("count", [None, 0])
def test_where_nothing_waits_or_nobody_can_tell_it_is_sent(store: Store, count: int | None) -> None:
    assert [may_send(store, NAME, QUEUE, lambda queue: count) for _ in range(3)] == [True] * 3


def test_a_worker_notes_that_it_has_taken_it(app: Celery, settings: Settings) -> None:
    """Before the task itself, which may be long."""
    task = tasks.sweep
    task.push_request(delivery_info={"routing_key": settings.queue})
    try:
        task.before_start("id", (), {})
    finally:
        task.pop_request()
    store = runtime(settings).store
    assert store.queues.beat_times(NAME).taken > 0
    assert store.queues.last_taken(settings.queue) > 0


DATABASE_BEAT = """
    import django
    from django.conf import settings
    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django_celery_beat"], USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    django.setup()
    from django.core.management import call_command
    call_command("migrate", verbosity=0)
    from batchpipe.config.site import current_settings
    from batchpipe.worker.process import standalone_app
    from django_celery_beat.schedulers import DatabaseScheduler
    app = standalone_app(current_settings())
    app.loader.import_default_modules()
    scheduler = DatabaseScheduler(app)
    for _ in range(20):
        scheduler.apply_entry(scheduler.schedule["batchpipe-sweep"])
"""


def test_the_scheduler_of_django_celery_beat_leaves_one_message_that_expires(
    redis_url: str, prefix: str, tmp_path: Path, server: Any
) -> None:
    pytest.importorskip("django_celery_beat")
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "BATCHPIPE_REDIS_URL": redis_url,
        "BATCHPIPE_PREFIX": prefix,
        "BATCHPIPE_HOME": str(tmp_path),
        "BATCHPIPE_QUEUE": "dcb",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.getcwd(),
    }
    server.delete("dcb")
    command = [sys.executable, "-c", textwrap.dedent(DATABASE_BEAT)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [message] = server.lrange("dcb", 0, -1)
    assert orjson.loads(message)["headers"]["expires"] is not None
