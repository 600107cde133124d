"""What ``setup`` adds to a site's Celery app. The settings that it only checks are in ``worker.checks``.

The standalone worker uses this, too: a site's worker does for batchpipe what ours does.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from celery import Celery, signals
from celery.app.utils import find_app
from celery.concurrency.solo import TaskPool as SoloPool

from batchpipe.client.client import default_client
from batchpipe.config.environment import is_path_safe
from batchpipe.config.loading import load_settings
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_settings, current_site
from batchpipe.config.site_values import SiteSettings
from batchpipe.errors import BatchpipeError, SettingsError
from batchpipe.pipeline.sweep import look_after_accounts, sweep
from batchpipe.provider import warm_up
from batchpipe.store import LISTENING_PACE
from batchpipe.tasks.app import beat_schedule, current_site_app, is_ours, itself, queue_of, state_of
from batchpipe.tasks.broker_clients import keep_clients
from batchpipe.tasks.celery_tasks import bound_long_tasks
from batchpipe.tasks.runtime import runtime
from batchpipe.worker import schedule_tasks  # noqa: F401 - its task is known once it is imported
from batchpipe.worker.checks import check_app, pool_finding
from batchpipe.worker.outlive_redis import outlive_redis

logger = logging.getLogger(__name__)

#: How often a worker asks itself whether it is time for a look, in seconds.
LOOK_CHECK_SECONDS = 5.0


def setup(app: Celery, settings: Mapping[str, Any] | None = None) -> None:
    """Set batchpipe up in a Celery app. Call it once, where the app is made; a second call does no harm.

    It adds to the app: our tasks, their queue (which a worker without ``-Q`` then takes besides its own) and route, the
    beat entry of the sweep and of the schedules. Workers of the app sweep at their start and once a lease. Settings of
    the app are checked when a worker starts, and never changed.

    ``settings``: names of our settings without their prefix; they override the environment. A Django or Flask site
    has them in its own settings instead (``batchpipe.contrib``).
    """
    if settings is not None:
        given = SiteSettings(dict(settings), lambda name: f"batchpipe.setup(app, settings={{{name!r}: ...}})")
        site = current_site()
        site.read, site.settings = lambda: load_settings(given=given), None
    app = itself(app)
    current_site().app = app
    if is_set_up(app):
        return
    site_worker = SiteWorker(app)
    own: dict[str, Any] = {"weak": False}
    app.on_after_configure.connect(site_worker.configure_early, **own)
    if app.configured:
        site_worker.configure_early()
    # The site's own settings can be read for certain only once it is loaded: a worker and beat send this signal then.
    signals.import_modules.connect(
        site_worker.configure, sender=app, dispatch_uid=f"batchpipe-furnish-{id(app)}", **own
    )
    signals.celeryd_init.connect(site_worker.join_worker, dispatch_uid=f"batchpipe-queue-{id(app)}", **own)
    signals.celeryd_after_setup.connect(site_worker.report, dispatch_uid=f"batchpipe-report-{id(app)}", **own)
    signals.worker_ready.connect(site_worker.start_sweeping, dispatch_uid=f"batchpipe-sweep-{id(app)}", **own)
    signals.worker_shutting_down.connect(site_worker.stop_sweeping, dispatch_uid=f"batchpipe-stop-{id(app)}", **own)
    for end in (signals.worker_shutdown, signals.worker_process_shutdown):
        end.connect(site_worker.hand_over_counts, dispatch_uid=f"batchpipe-counts-{id(app)}", **own)
    state_of(app).worker = site_worker


def is_set_up(app: Celery) -> bool:
    """True if ``setup`` was called for this app in this process."""
    return state_of(app).worker is not None


def site_worker_of(app: Celery) -> SiteWorker:
    """The state of the worker of an app that was set up: whether it was ready, and whether it was told to stop."""
    worker: SiteWorker = state_of(app).worker
    return worker


class SiteWorker:
    """The receivers of an app's signals."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.stopping = threading.Event()
        self.was_ready = threading.Event()
        self.hurry = False  #: told to stop for the second time
        self.left_tasks = False  #: its pool ended while tasks ran
        self._entries: dict[str, Any] = {}
        self._route: dict[str, Any] = {}

    def configure_early(self, **_: Any) -> None:
        """The app has read its own configuration: add our entries to it, if our settings are known by now."""
        with suppress(Exception):  # settings that are not there yet, or wrong: reported when the site is loaded
            self._add(current_site().settings_to_be())

    def configure(self, **_: Any) -> None:
        """The site is loaded, and so its settings: beat and routes need them."""
        try:
            settings = current_settings()
        except SettingsError as error:  # reported when the worker is up; the site's own tasks must run
            logger.error("batchpipe is not set up: %s", error)
            return
        self._add(settings)
        if not self.app.conf.task_create_missing_queues:  # beat would not know it, either
            queue_of(self.app, settings.queue)

    def _add(self, settings: Settings) -> None:
        """Beat entries and route, in place of those that were added before."""
        conf, entries = self.app.conf, beat_schedule(settings)
        theirs = {name: it for name, it in (conf.beat_schedule or {}).items() if self._entries.get(name) is not it}
        conf.beat_schedule = {**entries, **theirs}  # the site's own dict stays as it is
        route = {"batchpipe.*": {"queue": settings.queue}}
        conf.task_routes = _with_route(conf.task_routes, route, instead_of=self._route)
        self._entries, self._route = entries, route

    def join_worker(self, *, instance: Any, **_: Any) -> None:
        """A worker of this app starts: it takes our queue, too, unless -Q or -X say otherwise later on."""
        if instance.app is not self.app:
            return
        current_site().app = self.app  # if several apps were set up, tasks publish through the one that runs them
        warm_up()  # before there are threads or forked children
        outlive_redis()
        keep_clients()
        try:
            queue = default_client().settings.queue  # without REDIS_URL this finds or starts the private Redis
            self.app.amqp.queues.select_add(queue_of(self.app, queue))
        except BatchpipeError as error:
            logger.error("batchpipe's tasks cannot run here: %s", error)

    def report(self, *, instance: Any, **_: Any) -> None:
        if instance.app is not self.app:
            return
        try:
            bound_long_tasks(self.app, _at_once(instance))
        except BatchpipeError as error:
            logger.warning("long tasks of this worker are not bounded: %s", error)
        try:
            found = check_app(self.app, current_settings())
            pool = pool_finding(getattr(instance, "pool_cls", ""))
            if pool is not None and pool.why not in {finding.why for finding in found}:
                found.append(pool)
            for finding in found:
                logger.log(logging.ERROR if finding.fatal else logging.WARNING, "%s", finding)
            if lacking := _lacks_keys(current_settings()):
                logger.warning(
                    "this worker cannot call the provider: %s; `batchpipe worker --sandbox` needs no key", lacking
                )
        except SettingsError as error:
            logger.error("batchpipe's tasks cannot run here: %s", error)

    def start_sweeping(self, *, sender: Any, **_: Any) -> None:
        """Sweep at worker start and once per lease: without beat, this repairs what was lost."""
        if getattr(sender, "app", self.app) is not self.app:
            return
        self.stopping.clear()
        self.was_ready.set()
        threading.Thread(target=self._sweep_on, name="batchpipe-sweep", daemon=True).start()
        listening = threading.Thread(target=self._say_where_it_listens, args=(sender,), name="batchpipe-listening")
        listening.daemon = True
        listening.start()

    def stop_sweeping(self, **_: Any) -> None:
        self.stopping.set()

    def hand_over_counts(self, **_: Any) -> None:
        """A worker, or a process of its pool, ends: what its last turns have counted is written now."""
        with suppress(Exception):  # counts are only for people
            runtime().job_runner.flush()

    def _say_where_it_listens(self, consumer: Any) -> None:
        """Note repeatedly in Redis on which queues this worker listens, and at its end that it no longer does."""
        worker, queues = str(getattr(consumer, "hostname", "worker")), list[str]()
        while True:
            with suppress(Exception):  # Redis is away, or the consumer is being recreated: noted the next time
                if current := list(consumer.task_consumer.queues):
                    names = [str(getattr(queue, "name", queue)) for queue in current]
                    gone, queues = set(queues) - set(names), names
                    runtime().store.queues.forget_listening(worker, gone)
                runtime().store.queues.note_listening(worker, queues)
            if self.stopping.wait(LISTENING_PACE):
                break
        with suppress(Exception):
            runtime().store.queues.forget_listening(worker, queues)

    def _sweep_on(self) -> None:
        """Sweep once a lease, and in between look at accounts with many batches when it is time."""
        pause, since = 60.0, float("inf")
        while True:
            try:
                pause = current_settings().lease_seconds
                if since >= pause:
                    since = 0.0
                    sweep(runtime().job_runner)
                else:
                    look_after_accounts(runtime().job_runner)
            except BatchpipeError as error:
                logger.warning("sweep failed: %s", error)
            except Exception:  # without beat this thread is the whole safety net
                logger.exception("sweep failed")
            step = min(pause, LOOK_CHECK_SECONDS)
            since += step
            if self.stopping.wait(step):
                return


def _at_once(worker: Any) -> int:
    """The most tasks that a worker runs at once: an autoscaled pool grows while tasks find no process."""
    if issubclass(getattr(worker, "pool_cls", SoloPool), SoloPool):
        return 1
    return int(worker.max_concurrency or worker.concurrency or 1)


def _lacks_keys(settings: Settings) -> str:
    """What to set if no account has a key on this host."""
    lacking = ""
    for name in ("default", *settings.accounts):
        try:
            settings.account(name)
            return ""
        except SettingsError as error:
            lacking = lacking or str(error)
    return lacking


def _with_route(routes: Any, ours: dict[str, Any], instead_of: dict[str, Any]) -> list[Any]:
    """The site's routes come first: a site that routes our tasks elsewhere has a reason."""
    theirs = list(routes) if isinstance(routes, list | tuple) else [routes] if routes else []
    return [*(route for route in theirs if route not in (ours, instead_of)), ours]


# -- the command line's -A -----------------------------------------------------------------------------------------


def load_app(name: str) -> Celery:
    """The site's app by its name, as ``celery -A`` takes it, with the site loaded. Raises SettingsError."""
    trusted = not is_path_safe()  # else a service works where others may put files
    if trusted and (here := os.getcwd()) not in sys.path:  # a site's modules lie side by side and are loaded one by one
        sys.path.insert(0, here)
    try:
        app = find_app(name) if trusted else find_app(name, imp=import_module)
        if not isinstance(app, Celery):
            raise SettingsError(f"-A {name}: is a {type(app).__name__}, not a Celery app")
        app = itself(app)
        app.set_default()
        app.set_current()
        current_site().app = app
        app.loader.import_default_modules()
    except BatchpipeError:
        raise
    except (Exception, SystemExit) as error:  # the site's own code runs here
        raise SettingsError(f"-A {name}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not is_set_up(app):
        setup(app)
    return app


def site_app() -> Celery | None:
    """The site's Celery app, if this process has one."""
    app = current_site_app()
    return app if app is not None and not is_ours(app) else None
