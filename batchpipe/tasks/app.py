"""The Celery app in use: a site's own; ours for the standalone worker, beat, the command line and plain scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlencode

from celery import Celery, current_app
from celery.local import Proxy
from kombu.transport import TRANSPORT_ALIASES

from batchpipe.config.limits import visibility_seconds
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_settings, current_site
from batchpipe.errors import SettingsError
from batchpipe.model.records import LONGEST_PAUSE
from batchpipe.pipeline.slots import Slots


@dataclass
class AppState:
    """What a process remembers of one Celery app; it lives as long as the app."""

    made_here: bool = False  #: by ``make_app``; a site's own app may also be called batchpipe
    stands_in_for: Settings | None = None  #: made because there was none, from these settings
    beats: bool = False  #: this process runs its beat; not every version of beat marks its messages
    slots: Slots | None = None  #: of the worker of this app, or of the one that forked this process; None: no limit
    worker: Any = None  #: what ``setup`` has made for it, see ``worker.setup``


def state_of(app: Celery) -> AppState:
    """The state of an app, kept on the app itself."""
    state: AppState = vars(itself(app)).setdefault("batchpipe_state", AppState())
    return state


def itself(app: Celery) -> Celery:
    """The app behind ``celery.current_app``: signals are sent for that one."""
    return app._get_current_object() if isinstance(app, Proxy) else app


def make_app(settings: Settings) -> Celery:
    """A configured app. Every value here was measured to lose nothing (docs/architecture.md). Raises SettingsError."""
    _check_broker(settings.broker_address())
    app = Celery("batchpipe", set_as_current=False)
    state_of(app).made_here = True
    app.conf.update(_configuration(settings))
    return app


def is_ours(app: Celery) -> bool:
    """True for an app of ``make_app``, False for a site's own."""
    return state_of(app).made_here


def current_site_app() -> Celery | None:
    """The app of the current site, else Celery's current one; None if there is none."""
    if (app := current_site().current_app()) is not None:
        return cast(Celery, app)
    app = current_app._get_current_object()
    nobodys = app.main == "default" and not app.set_as_current and not app.configured
    return None if nobodys else app


def app_in_use() -> Celery:
    """The site's app; where none was made, ours, from the settings."""
    app = current_site_app()
    stands_in_for = state_of(app).stands_in_for if app is not None else None
    if app is None or (stands_in_for is not None and stands_in_for is not current_settings()):  # another site's broker
        app = make_app(current_settings())
        state_of(app).stands_in_for = current_settings()
        app.set_default()
        app.set_current()
    return app


def check_not_eager(app: Celery | None = None) -> None:
    """Raises SettingsError if Celery would run a task within the call that publishes it: that call would then call the
    provider, and each look at a batch would call the next one.
    """
    app = app or app_in_use()
    if app.conf.task_always_eager:
        name = f"{app.namespace}_TASK_ALWAYS_EAGER" if app.namespace else "app.conf.task_always_eager"
        raise SettingsError(
            f"{name} is on, so the whole job would run within this call: set {name} = False and start a worker; "
            "tests run jobs with batchpipe.testing.Pump"
        )


def queue_of(app: Celery, name: str) -> Any:
    """Our queue, also for an app that creates only the queues it is told of (``task_create_missing_queues``)."""
    queues = app.amqp.queues
    return queues[name] if queues.create_missing or name in queues else queues.add(queues.new_missing(name))


def _check_broker(url: str) -> None:
    """Raises SettingsError, without the URL, which may hold a password, if Celery knows no transport for it."""
    scheme = url.partition("://")[0].partition("+")[0]
    if "://" not in url or scheme not in {*TRANSPORT_ALIASES, "unix"}:
        raise SettingsError("BATCHPIPE_BROKER_URL is no broker URL: redis://..., amqp://... or another of Celery's")


def transport_options(broker_url: str, visibility: int) -> dict[str, Any]:
    """Options of the Redis transport; other brokers do not have them."""
    if not broker_url.startswith(("redis://", "rediss://", "redis+socket://", "unix://")):
        return {}
    return {
        "visibility_timeout": visibility,
        # look for messages of dead workers every 10 s, not every 100
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # without these a publish to a dead peer hangs for ever
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }


def countdown_of(app: Celery, seconds: float) -> float:
    """The delay as the broker supports it: RabbitMQ's quorum queues take whole seconds, and Celery fails for 0.5."""
    is_amqp = "amqp" in str(app.conf.broker_write_url or app.conf.broker_url or "").partition("://")[0]
    return math.ceil(seconds) if is_amqp else seconds


def _as_kombu_reads_it(broker: str) -> str:
    """Converts redis-py's address of a socket (``unix://PATH?db=3``): kombu spells scheme and database differently."""
    if not broker.startswith("unix://"):
        return broker
    address, _, query = broker.removeprefix("unix://").partition("?")
    given = dict(parse_qsl(query))
    user, password = quote(given.pop("username", ""), safe=""), quote(given.pop("password", ""), safe="")
    if (user or password) and address.startswith("/"):
        address = f"{user}:{password}@{address}"
    if "db" in given:
        given["virtual_host"] = given.pop("db")
    return f"redis+socket://{address}{'?' if given else ''}{urlencode(given, safe='/:')}"


def _configuration(settings: Settings) -> dict[str, Any]:
    broker = settings.broker_address()
    return {
        "broker_url": _as_kombu_reads_it(broker),
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,  # status lives in our records
        "task_default_queue": settings.queue,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure_or_timeout": True,
        "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0.5, "interval_max": 2},
        "worker_prefetch_multiplier": 1,  # fewer messages stranded by a kill
        "broker_transport_options": transport_options(broker, visibility_seconds(settings, LONGEST_PAUSE)),
        "broker_connection_timeout": 5,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a long outage must not end the worker
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # leases protect the work itself
        "worker_soft_shutdown_timeout": settings.stop_seconds,
        "worker_send_task_events": False,  # only while a monitor asks for them, see worker.task_events
        "task_send_sent_event": False,
        "task_track_started": True,
        "worker_max_tasks_per_child": 1_000,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts_level": "INFO",  # what a task or receiver prints is not a warning
        "beat_schedule": beat_schedule(settings),
    }


def beat_expires(pace: float) -> float:
    """After how many seconds a message that beat sends every ``pace`` seconds is void."""
    return 4 * pace


def beat_schedule(settings: Settings) -> dict[str, Any]:
    """What beat sends: the sweep, and a look for due schedules where there are any.

    Messages expire, where the broker drops expired ones; ``tasks.options.BeatTask`` keeps them from piling up on every
    broker.
    """
    paces = {"sweep": settings.sweep_seconds} | ({"schedules": settings.schedule_seconds} if settings.schedules else {})
    return {
        f"batchpipe-{name}": {
            "task": f"batchpipe.{name}",
            "schedule": pace,
            "options": {"queue": settings.queue, "expires": beat_expires(pace)},
        }
        for name, pace in paces.items()
    }
