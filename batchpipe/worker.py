"""The standalone Celery processes: worker and beat, with settings that were measured to lose nothing.

``celery -A batchpipe.worker ...`` finds ``app`` here, too; it is made at first use.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from celery import Celery, signals

from batchpipe import tasks
from batchpipe.celery_app import make_app, outlive_redis
from batchpipe.errors import BatchpipeError
from batchpipe.openai_api import warm_up
from batchpipe.private_redis import acquire
from batchpipe.settings import Settings, bare_environment, current_settings, install_settings
from batchpipe.storage import Folder
from batchpipe.sweep import sweep

if TYPE_CHECKING:
    app: Celery

logger = logging.getLogger(__name__)

#: How long a worker that lost its parent may take to hand back its work.
ORPHAN_GRACE_SECONDS = 20.0


def standalone_app(settings: Settings) -> Celery:
    """Our app, made current, with our tasks in it and a sweep in its workers."""
    app = make_app(settings)
    app.set_default()
    app.set_current()
    app.conf.imports = (*app.conf.imports, tasks.__name__)
    signals.worker_ready.connect(_start_sweeping, weak=False, dispatch_uid="batchpipe-sweep")
    signals.worker_shutting_down.connect(_stop_sweeping, weak=False, dispatch_uid="batchpipe-sweep-stop")
    return app


def run_worker(
    settings: Settings,
    *,
    queues: str | None = None,
    pool: str = "threads",
    concurrency: int = 8,
    loglevel: str = "INFO",
    with_parent: bool = False,
    extra: tuple[str, ...] = (),
) -> None:
    """Run a worker in the foreground until it is told to stop. ``with_parent``: stop when standard input ends."""
    warm_up()  # before there are threads or forked children
    outlive_redis()
    app = standalone_app(settings)
    if with_parent:
        threading.Thread(target=_watch_parent, name="batchpipe-parent", daemon=True).start()
    app.worker_main(
        [
            *("worker", "--pool", pool, "--concurrency", str(concurrency), "--queues", queues or settings.queue),
            *("--hostname", f"batchpipe-{os.getpid()}@%h", "--loglevel", loglevel, "-E"),
            *("--without-mingle", "--without-gossip"),
            *extra,
        ]
    )
    if _was_ready.is_set() and not _stop.is_set():  # else whoever restarts what has failed would take this for its wish
        logger.error("the worker ended though nobody asked it to")
        raise SystemExit(1)


def run_beat(settings: Settings, *, loglevel: str = "INFO") -> None:
    """Run beat in the foreground until it is told to stop."""
    app = standalone_app(settings)
    Folder(str(settings.home), private=True).make()
    app.start(["beat", "--schedule", str(settings.home / "beat-schedule"), "--pidfile=", "--loglevel", loglevel])


_stop = threading.Event()
_was_ready = threading.Event()


def _start_sweeping(**_: Any) -> None:
    """Sweep at worker start and at the pace of a lease: without beat, this repairs what was lost."""
    _stop.clear()
    _was_ready.set()
    threading.Thread(target=_sweep_on, name="batchpipe-sweep", daemon=True).start()


def _stop_sweeping(**_: Any) -> None:
    _stop.set()


def _sweep_on() -> None:
    pause = current_settings().lease_seconds
    while True:
        try:
            sweep(tasks.runtime().jobs)
        except BatchpipeError as error:
            logger.warning("sweep failed: %s", error)
        except Exception:  # without beat this thread is the whole safety net
            logger.exception("sweep failed")
        if _stop.wait(pause):
            return


def _watch_parent() -> None:
    """A worker that serves one command must not outlive it, however that ends: its end closes our input."""
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
        globals()["_private_redis"] = handle  # held as long as this process lives
        settings = settings.with_redis(handle.server.url)
        install_settings(settings)
    globals()["app"] = made = standalone_app(settings)
    return made
