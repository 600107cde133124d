"""A Celery app for processes that have none: the standalone worker, beat, the command line, a plain script.

A Django or Flask site runs our tasks in its own app; nothing here is needed there.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from weakref import WeakSet

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from batchpipe.config.limits import visibility_seconds
from batchpipe.config.settings import Settings
from batchpipe.errors import SettingsError
from batchpipe.model.records import LONGEST_PAUSE

#: Apps that were made here. A site's own app may also be called batchpipe.
_ours: WeakSet[Celery] = WeakSet()


def make_app(settings: Settings) -> Celery:
    """A configured app. Every value here was measured to lose nothing (docs/architecture.md). Raises SettingsError."""
    _check_broker(settings.broker_address())
    app = Celery("batchpipe", set_as_current=False)
    _ours.add(app)
    app.conf.update(_configuration(settings))
    return app


def is_ours(app: Celery) -> bool:
    """True for an app of ``make_app``, False for a site's own."""
    return app in _ours


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
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "task_track_started": True,
        "worker_max_tasks_per_child": 1_000,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts_level": "INFO",  # what a task or receiver prints is not a warning
        "beat_schedule": beat_schedule(settings),
    }


def pulse_expires(pace: float) -> float:
    """After how many seconds a message that beat sends every ``pace`` seconds is void."""
    return 4 * pace


def beat_schedule(settings: Settings) -> dict[str, Any]:
    """What beat sends: the sweep, and a look for due schedules where there are any.

    Messages expire, where the broker drops expired ones; ``tasks.Pulse`` keeps them from piling up on every broker.
    """
    paces = {"sweep": settings.sweep_seconds} | ({"schedules": settings.schedule_seconds} if settings.schedules else {})
    return {
        f"batchpipe-{name}": {
            "task": f"batchpipe.{name}",
            "schedule": pace,
            "options": {"queue": settings.queue, "expires": pulse_expires(pace)},
        }
        for name, pace in paces.items()
    }
