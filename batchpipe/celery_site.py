"""At home in a Celery app: what ``setup`` adds to a site's app, and what of the app it checks and leaves alone.

The standalone worker goes through here, too: a site's worker does for batchpipe what ours does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery, signals
from celery.app.utils import find_app

from batchpipe import (
    schedule_tasks,  # noqa: F401 - its task is known once it is imported
    tasks,
)
from batchpipe.celery_app import OURS, beat_schedule, outlive_redis
from batchpipe.client import default_client
from batchpipe.errors import BatchpipeError, SettingsError
from batchpipe.openai_api import warm_up
from batchpipe.settings import Settings, current_settings, install_site, load_settings
from batchpipe.site_settings import SiteSettings
from batchpipe.sweep import sweep
from batchpipe.turns import LONGEST_PAUSE

logger = logging.getLogger(__name__)

#: A poll's longest countdown and the hard time limit of a short task: a message may be unacknowledged for so long.
LONGEST_UNACKNOWLEDGED = LONGEST_PAUSE + tasks.SHORT_TASK_SECONDS
#: kombu's default for Redis.
KOMBU_VISIBILITY = 3_600


@dataclass(frozen=True)
class Finding:
    """A setting of a site's Celery app that does harm here: its name, why, and the line to write."""

    name: str
    why: str
    line: str
    fatal: bool = False  #: jobs cannot run like this

    def __str__(self) -> str:
        return f"{self.name}: {self.why}; write {self.line}"


def setup(app: Celery, settings: Mapping[str, Any] | None = None) -> None:
    """Make batchpipe at home in a Celery app. Call it once, where the app is made; twice does no harm.

    It adds to the app: our tasks, their queue (which a worker without ``-Q`` then takes beside its own) and route, the
    beat entry of the sweep and of the schedules. Workers of the app sweep at their start and once a lease. Settings of
    the app are checked when a worker starts, and never changed.

    ``settings``: names of our settings without their prefix, before those of the environment. A Django or Flask site
    has them in its own settings instead (``batchpipe.contrib``).
    """
    if settings is not None:
        given = SiteSettings(dict(settings), lambda name: f"batchpipe.setup(app, settings={{{name!r}: ...}})")
        install_site(lambda: load_settings(given=given))
    if is_set_up(app):
        return tasks.install_app(app)
    house = _House(app)
    own: dict[str, Any] = {"weak": False}
    # The site's own settings can be read only once it is loaded: a worker and beat send this signal then.
    signals.import_modules.connect(house.furnish, sender=app, dispatch_uid=f"batchpipe-furnish-{id(app)}", **own)
    signals.celeryd_init.connect(house.move_in, dispatch_uid=f"batchpipe-queue-{id(app)}", **own)
    signals.celeryd_after_setup.connect(house.report, dispatch_uid=f"batchpipe-report-{id(app)}", **own)
    signals.worker_ready.connect(house.start_sweeping, dispatch_uid=f"batchpipe-sweep-{id(app)}", **own)
    signals.worker_shutting_down.connect(house.stop_sweeping, dispatch_uid=f"batchpipe-stop-{id(app)}", **own)
    _HOUSES[id(app)] = house
    return tasks.install_app(app)


def is_set_up(app: Celery) -> bool:
    """True if ``setup`` was called for this app in this process."""
    return id(app) in _HOUSES


def house_of(app: Celery) -> _House:
    """The house of an app that was set up: tells whether its worker was ready, and whether it was told to stop."""
    return _HOUSES[id(app)]


class _House:
    """What an app's signals call."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.stopping = threading.Event()
        self.was_ready = threading.Event()

    def furnish(self, **_: Any) -> None:
        """The site is loaded, and so its settings: beat and routes need them."""
        try:
            settings = current_settings()
        except SettingsError as error:  # reported when the worker is up; the site's own tasks must run
            logger.error("batchpipe is not set up: %s", error)
            return
        conf = self.app.conf
        for name, entry in beat_schedule(settings).items():
            conf.beat_schedule.setdefault(name, entry)
        conf.task_routes = _with_route(conf.task_routes, {"batchpipe.*": {"queue": settings.queue}})

    def move_in(self, *, instance: Any, **_: Any) -> None:
        """A worker of this app begins: it takes our queue, too, unless -Q or -X say otherwise later on."""
        if instance.app is not self.app:
            return
        warm_up()  # before there are threads or forked children
        outlive_redis()
        try:
            queue = default_client().settings.queue  # without REDIS_URL this finds or starts the private Redis
            queues = self.app.amqp.queues
            queues.select_add(queues[queue])
        except BatchpipeError as error:
            logger.error("batchpipe's tasks cannot run here: %s", error)
        except KeyError as error:  # task_create_missing_queues is off
            logger.error("batchpipe's queue %s is not among task_queues: add it", error)

    def report(self, *, instance: Any, **_: Any) -> None:
        if instance.app is not self.app:
            return
        try:
            for finding in check_app(self.app, current_settings()):
                logger.log(logging.ERROR if finding.fatal else logging.WARNING, "%s", finding)
        except SettingsError as error:
            logger.error("batchpipe's tasks cannot run here: %s", error)

    def start_sweeping(self, *, sender: Any, **_: Any) -> None:
        """Sweep at worker start and at the pace of a lease: without beat, this repairs what was lost."""
        if getattr(sender, "app", self.app) is not self.app:
            return
        self.stopping.clear()
        self.was_ready.set()
        threading.Thread(target=self._sweep_on, name="batchpipe-sweep", daemon=True).start()

    def stop_sweeping(self, **_: Any) -> None:
        self.stopping.set()

    def _sweep_on(self) -> None:
        pause = 60.0
        while True:
            try:
                pause = current_settings().lease_seconds
                sweep(tasks.runtime().jobs)
            except BatchpipeError as error:
                logger.warning("sweep failed: %s", error)
            except Exception:  # without beat this thread is the whole safety net
                logger.exception("sweep failed")
            if self.stopping.wait(pause):
                return


_HOUSES: dict[int, _House] = {}


def _with_route(routes: Any, ours: dict[str, Any]) -> list[Any]:
    """The site's routes come first: who routes our tasks elsewhere has a reason."""
    theirs = list(routes) if isinstance(routes, list | tuple) else [routes] if routes else []
    return theirs if ours in theirs else [*theirs, ours]


# -- what is app-wide ----------------------------------------------------------------------------------------------


def check_app(app: Celery, settings: Settings) -> list[Finding]:
    """What is wrong with the app for batchpipe. Reads the app's configuration and changes nothing."""
    return [finding for look in _LOOKS for finding in look(app, settings)]


def _setting(app: Celery, name: str) -> str:
    """As the site spells it: CELERY_... in Django's settings, ``app.conf...`` elsewhere."""
    return f"{app.namespace}_{name.upper()}" if app.namespace else f"app.conf.{name}"


def _look_at_content(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not {"json", "application/json"} & set(app.conf.accept_content or ()):
        name = _setting(app, "accept_content")
        why = "workers refuse JSON, and so every task of batchpipe"
        yield Finding(name, why, f'{name} = [..., "json"]', fatal=True)


def _look_at_eagerness(app: Celery, settings: Settings) -> Iterator[Finding]:
    if app.conf.task_always_eager:
        name = _setting(app, "task_always_eager")
        yield Finding(name, "a job would run within the call that submits it", f"{name} = False", fatal=True)


def _look_at_visibility(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not _is_redis(app):
        return
    seconds = (app.conf.broker_transport_options or {}).get("visibility_timeout", KOMBU_VISIBILITY)
    if seconds < LONGEST_UNACKNOWLEDGED:
        name = _setting(app, "broker_transport_options")
        why = (
            f"visibility_timeout is {seconds:g} s, but a poll may wait for {LONGEST_PAUSE:g} s and a task run for "
            f"{tasks.SHORT_TASK_SECONDS:g} s: Redis would deliver it again and again meanwhile"
        )
        yield Finding(name, why, f'{name} = {{"visibility_timeout": 1800}}')


def _look_at_timeouts(app: Celery, settings: Settings) -> Iterator[Finding]:
    options = app.conf.broker_transport_options or {}
    if _is_redis(app) and not options.get("socket_timeout"):
        name = _setting(app, "broker_transport_options")
        why = "without socket_timeout a publish hangs for ever when the connection to Redis is dead"
        yield Finding(name, why, f'{name} = {{"socket_timeout": 30, "socket_connect_timeout": 5, ...}}')


def _look_at_prefetch(app: Celery, settings: Settings) -> Iterator[Finding]:
    multiplier = app.conf.worker_prefetch_multiplier
    if multiplier != 1:
        name = _setting(app, "worker_prefetch_multiplier")
        why = (
            f"{multiplier} messages per process are taken in advance: a short task waits behind a long upload, and a "
            "worker that is killed strands them until the sweep finds them"
        )
        yield Finding(name, why, f"{name} = 1")


def _look_at_control(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not app.conf.worker_enable_remote_control:
        name = _setting(app, "worker_enable_remote_control")
        why = "a cancel cannot revoke waiting tasks: it takes until their next look at the batch"
        yield Finding(name, why, f"{name} = True")


_LOOKS: tuple[Callable[[Celery, Settings], Iterator[Finding]], ...] = (
    _look_at_content,
    _look_at_eagerness,
    _look_at_visibility,
    _look_at_timeouts,
    _look_at_prefetch,
    _look_at_control,
)


def _is_redis(app: Celery) -> bool:
    url = app.conf.broker_write_url or app.conf.broker_url or ""
    return str(url).startswith(("redis://", "rediss://", "redis+socket://", "sentinel://"))


# -- the command line's -A -----------------------------------------------------------------------------------------


def load_app(name: str) -> Celery:
    """The site's app by its name, as ``celery -A`` takes it, with the site loaded. Raises SettingsError."""
    try:
        app = find_app(name)
        if not isinstance(app, Celery):
            raise SettingsError(f"-A {name}: is a {type(app).__name__}, not a Celery app")
        app.set_default()
        app.set_current()
        tasks.install_app(app)
        app.loader.import_default_modules()
    except BatchpipeError:
        raise
    except Exception as error:  # the site's own code runs here
        raise SettingsError(f"-A {name}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not is_set_up(app):
        setup(app)
    return app


def site_app() -> Celery | None:
    """The site's Celery app, if this process has one."""
    app = tasks.current_site_app()
    return app if app is not None and app.main != OURS else None
