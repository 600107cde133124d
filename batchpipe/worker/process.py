"""The standalone Celery processes: worker and beat, with settings that were measured to lose nothing.

``celery -A batchpipe.worker ...`` finds ``app`` here, too; it is made at first use.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.concurrency.thread import TaskPool
from celery.worker import state

from batchpipe.config.environment import bare_environment
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_settings, current_site
from batchpipe.local_redis import acquire
from batchpipe.storage import Folder
from batchpipe.storage.local import keep_private, touch
from batchpipe.tasks import celery_tasks
from batchpipe.tasks.app import is_ours, make_app
from batchpipe.worker import schedule_tasks
from batchpipe.worker.setup import setup, site_app, site_worker_of
from batchpipe.worker.task_events import TaskEvents

if TYPE_CHECKING:
    app: Celery

logger = logging.getLogger(__name__)

#: How long a worker that lost its parent may take to hand back its work.
ORPHAN_GRACE_SECONDS = 20.0
#: How long a worker that is told to stop may take to hand back its messages, beside the time that its tasks get.
HAND_BACK_SECONDS = 40.0
#: How long beat may take to end when it is told to.
BEAT_STOP_SECONDS = 5.0


def standalone_app(settings: Settings) -> Celery:
    """Our app, made current and set up like a site's app."""
    app = make_app(settings)
    app.set_default()
    app.set_current()
    app.conf.imports = (*app.conf.imports, celery_tasks.__name__, schedule_tasks.__name__)
    app.autodiscover_tasks()  # in a Django site without a Celery app: the tasks.py of its Django apps
    setup(app)
    return app


def run_worker(
    settings: Settings,
    *,
    queues: str | None = None,
    pool: str = "threads",
    concurrency: int = 8,
    loglevel: str = "INFO",
    with_parent: bool = False,
    alive_file: Path | None = None,
    extra: tuple[str, ...] = (),
) -> None:
    """Run a worker in the foreground until it is told to stop: of the site's app, if it has one.

    ``with_parent``: stop when standard input ends. ``alive_file`` is touched while the worker hears its broker.
    """
    app, ended = site_app() or standalone_app(settings), threading.Event()
    app.conf.worker_hijack_root_logger = False  # our command has already set up logging, as LOG_FORMAT says
    app.conf.worker_redirect_stdouts_level = "INFO"  # what a receiver prints is not a warning
    _show_life(alive_file, signals.heartbeat_sent)
    if is_ours(app):  # what a site's own app sends is the site's choice
        events = TaskEvents(app)
        events.install()
        signals.worker_ready.connect(lambda sender, **_: events.watch(sender), weak=False)
    if pool == "threads":
        app.conf.worker_pool = ThreadPool
        signals.worker_ready.connect(_stop_gently)
        watched = (site_worker_of(app).stopping, ended, settings.stop_seconds + HAND_BACK_SECONDS)
        threading.Thread(target=end_in_time, args=watched, name="batchpipe-stop", daemon=True).start()
    if with_parent:
        threading.Thread(target=_watch_parent, name="batchpipe-parent", daemon=True).start()
    command = [
        *("worker", "--concurrency", str(concurrency), "--queues", queues or settings.queue),
        *(("--pool", pool) if pool != "threads" else ()),
        *("--hostname", f"batchpipe-{os.getpid()}@%h", "--loglevel", loglevel),
        *("--without-mingle", "--without-gossip"),
        *extra,
    ]
    try:
        code = app.worker_main(command)
    finally:
        ended.set()
    site_worker = site_worker_of(app)
    if (site_worker.was_ready.is_set() or code) and not site_worker.stopping.is_set():
        # with 0 a supervisor would take this for an intended end
        logger.error("the worker ended though nobody asked it to")
        raise SystemExit(1)
    if site_worker.left_tasks:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


class ThreadPool(TaskPool):  # type: ignore[misc]
    """A pool of threads that the process may leave behind: Celery's own pool waits for its threads, however long.

    Their messages are handed back; the process then ends without them, as if killed, and their leases expire.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: set[Future[Any]] = set()

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super().on_apply(*args, **kwargs)
        self._running.add(result.f)
        result.f.add_done_callback(self._running.discard)
        return result

    def on_stop(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)
        seconds, site_worker = current_settings().stop_seconds, site_worker_of(self.app)
        if self._running:
            logger.info("told to stop: %d tasks get %g s to end", len(self._running), seconds)
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline and not site_worker.hurry:
            wait(tuple(self._running), timeout=0.2)
        site_worker.left_tasks = bool(self._running)


def _stop_gently(sender: Any, **_: Any) -> None:
    """Note the request to stop, and let Celery's loop act on it.

    Celery's handlers of SIGQUIT, and of SIGTERM with REMAP_SIGTERM, do the whole shutdown wherever the main thread is:
    it may hold a lock that the shutdown waits for, as when it hands a task to a thread.
    """

    def on_signal(number: int, frame: Any) -> None:
        site_worker_of(sender.app).hurry = state.should_stop is not None
        state.should_stop = 0
        name = signal.Signals(number).name
        signals.worker_shutting_down.send(sender=sender.hostname, sig=name, how="Warm", exitcode=0)

    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        signal.signal(number, on_signal)


def end_in_time(
    stopping: threading.Event, ended: threading.Event, seconds: float, leave: Callable[[int], object] = os._exit
) -> None:
    """If the broker hangs, Celery waits for each of its last messages: a worker that is told to stop skips some."""
    stopping.wait()
    if ended.wait(seconds):  # the process may go on, if it is not ours
        return
    logger.error("told to stop %g s ago, and the broker does not answer: what is in hand comes back by itself", seconds)
    leave(1)


def run_beat(settings: Settings, *, loglevel: str = "INFO", alive_file: Path | None = None) -> None:
    """Run beat in the foreground until it is told to stop: of the site's app, if it has one.

    ``alive_file`` is touched with each message that the broker took.
    """
    app = site_app() or standalone_app(settings)
    app.conf.worker_hijack_root_logger = False
    _show_life(alive_file, signals.after_task_publish)
    Folder(str(settings.home), private=True).make()
    keep_private(settings.home, "beat-schedule*")
    _end_in_time(BEAT_STOP_SECONDS)
    app.start(["beat", "--schedule", str(settings.home / "beat-schedule"), "--pidfile=", "--loglevel", loglevel])


def _end_in_time(seconds: float) -> None:
    """End with code 0 this long after SIGTERM or SIGINT, whatever the main thread does. Beat has nothing to lose.

    Python calls a signal's handler between two steps of its main thread only. Where a name server has gone, the look-up
    of Redis' host is one step of 20 seconds and more, and a supervisor would kill beat in the midst of it.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(readable, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=watch, name="batchpipe-end-in-time", daemon=True).start()


def _show_life(path: Path | None, sign: Any) -> None:
    """Touch a file at each of these signals of Celery, so that a health check need not start a Python process."""
    if path is not None:
        sign.connect(lambda **_: touch(path), weak=False)


def _watch_parent() -> None:
    """A worker that serves one command must not outlive it, however that ends: the command's end closes our input."""
    while os.read(0, 1 << 16):  # not sys.stdin: its lock would be missing at shutdown
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    if not threading.Event().wait(ORPHAN_GRACE_SECONDS):
        os._exit(1)


def __getattr__(name: str) -> Any:
    """``app``, for ``celery -A batchpipe.worker``: reads the settings and finds the private Redis if need be."""
    if name != "app":
        raise AttributeError(name)
    settings = current_settings()
    if settings.redis_url is None:
        handle = acquire(settings.home, environment=bare_environment())
        globals()["_private_redis"] = handle  # held as long as this process runs
        settings = settings.with_redis(handle.server.url, durable=handle.server.durable)
        current_site().settings = settings
    globals()["app"] = made = standalone_app(settings)
    return made
