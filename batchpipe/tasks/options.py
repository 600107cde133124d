"""Options of the Celery tasks, and the base of those that beat sends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import Task, signals

from batchpipe.config.limits import HARD_AFTER_SOFT_SECONDS, task_limit
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_settings, current_site
from batchpipe.errors import BatchpipeError, SettingsError
from batchpipe.model.steps import STEPS
from batchpipe.pipeline.beat import may_send
from batchpipe.tasks.app import beat_expires, state_of
from batchpipe.tasks.inspection import waiting_in
from batchpipe.tasks.runtime import runtime


class _Limit:
    """A task's time limit in seconds, from the settings in use: they may be known only once a site is loaded.

    A site's own task_time_limit would end a long transfer again and again.
    """

    def __init__(self, name: str, *, hard: bool) -> None:
        self._name, self._hard = name, hard

    def __get__(self, instance: object, owner: type) -> int:
        site = current_site()
        try:
            limits = site.keep(_task_limits, site.settings)  # Celery asks four times for each message that it publishes
        except SettingsError:  # reported elsewhere, and by each task
            limits = _task_limits(Settings.model_construct())
        return limits[self._name] + (HARD_AFTER_SOFT_SECONDS if self._hard else 0)


def _task_limits(settings: Settings) -> dict[str, int]:
    return {name: task_limit(settings, name) for name in (*STEPS, "sweep")}


def _limits(name: str) -> dict[str, Any]:
    return {"time_limit": _Limit(name, hard=True), "soft_time_limit": _Limit(name, hard=False)}


_OPTIONS: dict[str, Any] = {
    "bind": True,
    "Request": "batchpipe.worker.request:TaskRequest",
    "acks_late": True,
    "reject_on_worker_lost": True,
    "acks_on_failure_or_timeout": True,
    "ignore_result": True,
    "serializer": "json",
    "max_retries": None,  # Celery's default of 3 would end a poll at its fourth look
    "rate_limit": 0,  # none: a site's task_default_rate_limit is for its own tasks
}


class _Expires:
    """After how many seconds a message of beat is void. Set on the task, because schedulers that keep entries in a
    database ignore what the entry says.
    """

    def __init__(self, pace: Callable[[Settings], float]) -> None:
        self._pace = pace

    def __get__(self, instance: object, owner: type) -> float | None:
        try:
            return beat_expires(self._pace(current_settings()))
        except SettingsError:  # reported elsewhere
            return None


def _note_beat(sender: Any, **_: Any) -> None:
    state_of(sender.app).beats = True


for _signal in (signals.beat_init, signals.beat_embedded_init):
    _signal.connect(_note_beat, weak=False, dispatch_uid="batchpipe-beats")


class BeatTask(Task):  # type: ignore[misc]
    """A task that beat sends every few seconds: not while an earlier message must still be waiting."""

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Like Celery's own; returns None if beat sends it and its last message still waits."""
        of_beat = state_of(self.app).beats or (options.get("headers") or {}).get("celery_beat_task")
        if of_beat and not self._may_send(options):
            return None
        return super().apply_async(args, kwargs, *more, **options)

    def _may_send(self, options: dict[str, Any]) -> bool:
        try:
            queue = options.get("queue") or self.app.amqp.router.route(dict(options), self.name).get("queue")
            return may_send(runtime().store, self.name, str(getattr(queue, "name", queue)), waiting_in)
        except BatchpipeError:  # Redis is away, or the settings are wrong: send it
            return True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """A worker has taken the message, so it takes from its queue."""
        with suppress(BatchpipeError):
            store = runtime().store
            store.queues.note_beat(self.name, taken=store.now())
            if queue := (self.request.delivery_info or {}).get("routing_key"):
                store.queues.note_taken(queue)


#: Options of the tasks that beat sends every few seconds: anybody who watches tasks would drown in them.
BEAT_OPTIONS = {
    **{name: _OPTIONS[name] for name in ("ignore_result", "serializer", "rate_limit")},
    **_limits("sweep"),
    "acks_late": False,
    "send_events": False,
}


def beat_options(pace: Callable[[Settings], float]) -> dict[str, Any]:
    """Options of a task that beat sends at this pace (seconds): its messages expire whatever beat's entry says."""
    return {**BEAT_OPTIONS, "base": BeatTask, "expires": _Expires(pace)}


#: Options of the tasks of a job, by name.
OPTIONS = {f"batchpipe.{name}": {**_OPTIONS, **_limits(name)} for name in STEPS}
