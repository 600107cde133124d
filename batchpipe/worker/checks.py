"""What is wrong with a site's Celery app for batchpipe: the name of each setting, why, and the line to write.

It reads the app's configuration and changes nothing, because the app has other tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.utils.quorum_queues import detect_quorum_queues

from batchpipe.config.limits import task_limit, visibility_seconds
from batchpipe.config.settings import Settings
from batchpipe.model.records import LONGEST_PAUSE
from batchpipe.tasks.app import queue_of
from batchpipe.tasks.options import BEAT_OPTIONS, OPTIONS

#: kombu's default for Redis.
KOMBU_VISIBILITY = 3_600
_NO_EVENTLET = "the provider cannot be called there: its SDK does not load where eventlet has changed the sockets"
#: The import for the line about queues.
_KOMBU = "from kombu import Exchange, Queue"


@dataclass(frozen=True)
class Finding:
    """A setting of a site's Celery app that does harm here: its name, why, and the line to write."""

    name: str
    why: str
    line: str
    fatal: bool = False  #: jobs cannot run with this setting

    def __str__(self) -> str:
        return f"{self.name}: {self.why}; write {self.line}"


def check_app(app: Celery, settings: Settings) -> list[Finding]:
    """What is wrong with the app for batchpipe. Reads the app's configuration and changes nothing."""
    return [finding for look in _LOOKS for finding in look(app, settings)]


def _look_at_names(app: Celery, settings: Settings) -> Iterator[Finding]:
    for line in settings.unknown:
        name, _, why = line.partition(": ")
        yield Finding(name, why, "the right one, or remove it")


def _setting(app: Celery, name: str) -> str:
    """As the site spells it: CELERY_... in Django's settings, ``app.conf...`` elsewhere."""
    return f"{app.namespace}_{name.upper()}" if app.namespace else f"app.conf.{name}"


def _look_at_content(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not {"json", "application/json"} & set(app.conf.accept_content or ()):
        name = _setting(app, "accept_content")
        why = "workers refuse JSON, and so every task of batchpipe"
        yield Finding(name, why, f"{name} = {_listed([*sorted(app.conf.accept_content or ()), 'json'])}", fatal=True)


def _look_at_eagerness(app: Celery, settings: Settings) -> Iterator[Finding]:
    if app.conf.task_always_eager:
        name = _setting(app, "task_always_eager")
        yield Finding(
            name, "a job would run within the call that submits it, so submit refuses", f"{name} = False", fatal=True
        )


def _look_at_visibility(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not _is_redis(app):
        return
    seconds = _visibility(app)
    if seconds < _longest_unacknowledged(settings):
        name = _setting(app, "broker_transport_options")
        why = (
            f"visibility_timeout is {seconds:g} s, but a poll may wait for {LONGEST_PAUSE:g} s and a task run for "
            f"{task_limit(settings, 'poll'):g} s: Redis would deliver it again and again before that"
        )
        yield Finding(name, why, _transport_line(app, settings))


def _longest_unacknowledged(settings: Settings) -> float:
    """A poll's longest countdown plus its hard time limit: a message may be unacknowledged for so long."""
    return LONGEST_PAUSE + task_limit(settings, "poll")


def _look_at_timeouts(app: Celery, settings: Settings) -> Iterator[Finding]:
    options = app.conf.broker_transport_options or {}
    if _is_redis(app) and not options.get("socket_timeout"):
        name = _setting(app, "broker_transport_options")
        why = "without socket_timeout a publish hangs for ever when the connection to Redis is dead"
        yield Finding(name, why, _transport_line(app, settings))


def _visibility(app: Celery) -> float:
    given = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    try:
        return float(KOMBU_VISIBILITY if given is None else given)
    except (TypeError, ValueError):
        return 0.0


def _transport_line(app: Celery, settings: Settings) -> str:
    """All that the setting should contain, also what is right: of one line for each error, each would undo the others.

    A text in the site's options may be a secret (``sentinel_kwargs``), so only its name is shown.
    """
    theirs = dict(app.conf.broker_transport_options or {})
    ours: dict[str, Any] = {"socket_timeout": 30} if not theirs.get("socket_timeout") else {}
    if not theirs.get("socket_connect_timeout"):
        ours["socket_connect_timeout"] = 5
    if _visibility(app) < _longest_unacknowledged(settings):
        ours["visibility_timeout"] = visibility_seconds(settings, LONGEST_PAUSE)
    shown = {str(name): _plain(value) for name, value in theirs.items()}
    return f"{_setting(app, 'broker_transport_options')} = {_as_dict({**shown, **ours})}"


def _as_dict(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{_quoted(name)}: {_quoted(value)}" for name, value in values.items()) + "}"


def _listed(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def _quoted(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _look_at_prefetch(app: Celery, settings: Settings) -> Iterator[Finding]:
    multiplier = app.conf.worker_prefetch_multiplier
    if multiplier != 1:
        name = _setting(app, "worker_prefetch_multiplier")
        many = f"{multiplier} messages per process" if multiplier else "all messages that wait"
        why = (
            f"{many} are taken in advance: a short task waits behind a long upload, and a worker that is killed "
            "strands them until the sweep finds them"
        )
        yield Finding(name, why, f"{name} = 1")


def _look_at_control(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not app.conf.worker_enable_remote_control:
        name = _setting(app, "worker_enable_remote_control")
        why = "a cancel cannot revoke waiting tasks: it takes until their next look at the batch"
        yield Finding(name, why, f"{name} = True")


def _look_at_tasks(app: Celery, settings: Settings) -> Iterator[Finding]:
    """Compares what our tasks need with what they have: annotations for ``*`` and a base class affect them, too."""
    if not app.conf.task_annotations and app.task_cls == _TASK_CLASS:
        return  # nothing can have changed them, and they need not be created for that
    changed: dict[str, Any] = {}
    hit: list[str] = []
    for task, wanted in _OURS.items():
        if task in app.tasks and (found := _changed(app, task, wanted, settings)):
            hit.append(task)
            changed = {**found, **changed}
    if not hit:
        return
    more = f" and {len(hit) - 1} more" if len(hit) > 1 else ""
    harm = "; ".join(dict.fromkeys(_HARM.get(name, _LATE) for name in changed))
    why = f"changes {' and '.join(changed)} of {hit[0]}{more}: {harm}"
    fatal = "serializer" in changed and not _accepts(app, changed["serializer"])
    if _RETRIED in changed or not app.conf.task_annotations:
        yield Finding("task_cls", why, f"{', '.join(changed)} on the tasks of yours, not on their base class", fatal)
        return
    name = _setting(app, "task_annotations")
    own = next((own for own in sorted(app.tasks) if not own.startswith(("batchpipe.", "celery."))), "proj.task")
    values = {one: _plain(value) for one, value in changed.items()}
    line = f'{name} = {{{_quoted(own)}: {_as_dict(values)}}}  # each task of yours by its name, and none as "*"'
    yield Finding(name, why, line, fatal)


def _changed(app: Celery, name: str, wanted: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The task's values that differ from what it needs."""
    task = app.tasks[name]
    needed = {one: wanted[one] for one in _NEEDED if one in wanted} | ({} if wanted is BEAT_OPTIONS else _NONE)
    found = {one: got for one, need in needed.items() if (got := getattr(task, one, None)) != need}
    if hasattr(task, "_orig_run"):  # Celery has wrapped the function
        found[_RETRIED] = getattr(task, _RETRIED, None)
    return found | {one: getattr(task, one) for one in _shorter(app, name, settings)}


def _accepts(app: Celery, serializer: Any) -> bool:
    accepted = app.conf.accept_content or ()
    return serializer in accepted or f"application/{serializer}" in accepted


def _look_at_routes(app: Celery, settings: Settings) -> Iterator[Finding]:
    """A route may send our tasks to another queue on purpose; but what it adds to their messages is checked."""
    if not app.conf.task_routes:
        return
    for task in _OURS:
        try:
            routed = app.amqp.router.route({"queue": settings.queue}, task, (), {})
        except Exception as error:  # a function of the site's, or a queue that is not there
            name = _setting(app, "task_routes")
            why = f"cannot be asked for {task} ({type(error).__name__}: {error}), so nothing can be sent"
            yield Finding(name, why, f"{name} = {{...}}  # routes that know each queue they name", fatal=True)
            return
        if added := [one for one in _ROUTED if routed.get(one) not in (None, "json")]:
            name = _setting(app, "task_routes")
            why = f"adds {' and '.join(added)} to the messages of {task}: {_HARM[added[0]]}"
            line = _route_line(app, name, {"batchpipe.*": {"queue": settings.queue}})
            yield Finding(name, why, line, fatal=True)
            return


def _route_line(app: Celery, name: str, ours: dict[str, Any]) -> str:
    """Our routes before the site's, which may be one mapping or a list; ``setup`` has added ours to a list already."""
    routes = app.conf.task_routes
    is_list = isinstance(routes, list | tuple) and not (ours in routes and len(routes) == 2)
    return f"{name} = [{json.dumps(ours)}, {'*' if is_list else ''}{name}]"


def _shorter(app: Celery, task: str, settings: Settings) -> list[str]:
    """Names of the task's time limits that may be too short for it. Without a limit of its own, the worker's counts."""
    needed = task_limit(settings, task.removeprefix("batchpipe."))
    found = {name: getattr(app.tasks[task], name) or getattr(app.conf, f"task_{name}") for name in _LIMITS}
    return [name for name, seconds in found.items() if seconds and seconds < needed]


def _look_at_pool(app: Celery, settings: Settings) -> Iterator[Finding]:
    if "eventlet" in str(app.conf.worker_pool):
        name = _setting(app, "worker_pool")
        yield Finding(name, _NO_EVENTLET, f'{name} = "threads"', fatal=True)


def pool_finding(pool: object) -> Finding | None:
    """What is wrong with a worker's pool, which its command line may set: a name that Celery knows, or a class."""
    if "eventlet" not in str(pool):
        return None
    return Finding("-P eventlet", _NO_EVENTLET, "-P threads, or -P gevent", fatal=True)


def _look_at_quorum(app: Celery, settings: Settings) -> Iterator[Finding]:
    if not app.conf.worker_detect_quorum_queues or not _broker(app).startswith(("amqp:", "amqps:", "pyamqp:")):
        return
    found, theirs = detect_quorum_queues(app, "amqp")
    if found and queue_of(app, settings.queue).exchange.type == "direct":
        name = _setting(app, "task_queues")
        why = (
            f"{theirs} is a quorum queue, so a worker takes a fixed number of messages: as many polls that wait keep "
            "it from all other tasks of batchpipe; behind a topic exchange RabbitMQ delays them"
        )
        yield Finding(name, why, f"{name} = [{', '.join(_queue_lines(app, settings.queue))}]  # {_KOMBU}")


def _queue_lines(app: Celery, ours: str) -> Iterator[str]:
    """The queues that the app has, as its code would make them, and ours behind a topic exchange."""
    for queue in app.amqp.queues.values():
        if queue.name != ours:
            exchange, key = queue.exchange, queue.routing_key or queue.name
            yield _queue_line(queue.name, exchange.name, exchange.type, key, queue.queue_arguments)
    yield _queue_line(ours, f"{ours}-topic", "topic", ours, {"x-queue-type": "quorum"})


def _queue_line(name: str, exchange: str, kind: str, key: str, arguments: Mapping[str, Any] | None) -> str:
    more = f", queue_arguments={_as_dict(arguments)}" if arguments else ""
    return f"Queue({_quoted(name)}, Exchange({_quoted(exchange)}, {_quoted(kind)}), {_quoted(key)}{more})"


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else "..."


#: Attributes of our tasks that jobs need to run as they should.
_NEEDED = (
    *("max_retries", "acks_late", "reject_on_worker_lost", "acks_on_failure_or_timeout", "ignore_result"),
    *("serializer", "rate_limit", "Request"),
)
#: Attributes that our tasks must not have.
_NONE = {"expires": None, "exchange": None, "routing_key": None}
_RETRIED = "autoretry_for"
#: What a route could add to messages, but must not.
_ROUTED = ("exchange", "routing_key", "expires", "serializer")
#: Celery's own base of tasks.
_TASK_CLASS = "celery.app.task:Task"
#: Our tasks, and what they need.
_OURS: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "batchpipe.sweep": BEAT_OPTIONS,
    "batchpipe.schedules": BEAT_OPTIONS,
}
_LATE = "a job waits or works for longer than that allows"
_HARM = {
    "rate_limit": "workers take few of them a minute, and each job needs hundreds",
    "serializer": "a worker that does not accept that drops them",
    "ignore_result": "what each of them answers stays in the result backend",
    "expires": "workers drop what has waited for longer, though a poll waits for minutes",
    "exchange": "they are sent where no worker of batchpipe listens",
    "routing_key": "they are sent where no worker of batchpipe listens",
    "acks_late": "what a killed worker had in hand is lost until the sweep finds it",
    "reject_on_worker_lost": "what a killed worker had in hand is lost until the sweep finds it",
    _RETRIED: "Celery repeats what batchpipe repeats itself",
}
_LIMITS = ("time_limit", "soft_time_limit")

_LOOKS: tuple[Callable[[Celery, Settings], Iterator[Finding]], ...] = (
    _look_at_content,
    _look_at_eagerness,
    _look_at_visibility,
    _look_at_timeouts,
    _look_at_prefetch,
    _look_at_control,
    _look_at_tasks,
    _look_at_routes,
    _look_at_quorum,
    _look_at_names,
    _look_at_pool,
)


def _broker(app: Celery) -> str:
    return str(app.conf.broker_write_url or app.conf.broker_url or "")


def _is_redis(app: Celery) -> bool:
    return _broker(app).startswith(("redis://", "rediss://", "redis+socket://", "sentinel://"))
