"""The Celery tasks: a few lines each. The logic is in ``batchpipe.pipeline``; the chain is built here.

They are shared tasks: a site's own app and workers run them; where there is no app, one is made from the settings.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

from amqp import AMQPError, ChannelError
from celery import Celery, Task, chain, current_app, shared_task, signals, signature
from celery.exceptions import OperationalError as CeleryOperationalError
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import KombuError, OperationalError

from batchpipe.config import seams
from batchpipe.config.limits import HARD_AFTER_SOFT_SECONDS, task_limit
from batchpipe.config.settings import Settings, current_settings
from batchpipe.errors import BatchpipeError, RecordUnreadable, SettingsError, StoreUnavailable, TransientError
from batchpipe.masking import printable, without_secrets
from batchpipe.model.records import JOB, JobRecord
from batchpipe.pipeline.job_runner import JobRunner, NotDelivered
from batchpipe.pipeline.pulse import may_send
from batchpipe.pipeline.runner import Done, Message, Next, Retry, links_from
from batchpipe.pipeline.shard_runner import ShardRunner
from batchpipe.pipeline.slots import SMALL_BYTES, SMALL_ROWS, Kind, Slots
from batchpipe.pipeline.sweep import sweep as sweep_once
from batchpipe.provider import Apis
from batchpipe.storage.local import nameless_file
from batchpipe.store import Store
from batchpipe.store.refusals import RedisAnswer, RedisTrouble, in_words, unreachable
from batchpipe.tasks.app import countdown_of, make_app, pulse_expires, queue_of
from batchpipe.telemetry.counters import Counters

logger = logging.getLogger(__name__)
seams.out_of_time = (SoftTimeLimitExceeded,)

#: Pause of a task that could not reach Redis at all.
REDIS_PAUSE_SECONDS = 10.0
#: Pause of a task in a process with wrong settings: another worker may take it, or a person corrects them.
SETTINGS_PAUSE_SECONDS = 60.0
#: Errors of a broker that cannot be reached, or that refuses (RabbitMQ: our login, or the queue; a Redis that is full
#: or read-only).
_BROKER_TROUBLE = (KombuError, OperationalError, CeleryOperationalError, OSError, AMQPError, RedisTrouble)
#: Enough for a short interruption; a broker that is down must not hold up a submit: the sweep publishes later.
_PUBLISH_RETRY = {"max_retries": 2, "interval_start": 0.0, "interval_step": 0.5, "interval_max": 1.0}
#: Links of a shard that transfer its file.
_TRANSFERS = ("upload", "download")
#: Priority of a transfer that needs a slot: taken when no short task waits. With Redis the highest number comes last;
#: other brokers count the other way round, or have no priorities.
_BEHIND: dict[str, Any] = {"priority": 9}


class Runtime:
    """What the tasks of one process share, made from its settings at first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store.connect(
            settings.redis_address(),
            prefix=settings.prefix,
            lease_seconds=settings.lease_seconds,
            ttl_seconds=settings.ttl_seconds,
        )
        counters = Counters()
        apis = Apis(settings, counters.call)
        self.shards = ShardRunner(settings, self.store, apis, publish, counters=counters)
        self.jobs = JobRunner(settings, self.store, apis, publish, tell, counters=counters, waiting_in=waiting_in)


#: The last few, newest first: a process may hold several sites, each with settings of its own.
_runtimes: list[Runtime] = []
_MOST_RUNTIMES = 4
_making = threading.Lock()


def runtime(settings: Settings | None = None) -> Runtime:
    """The runtime for these settings, or for those in use here. Raises SettingsError."""
    settings = settings or current_settings()
    with _making:
        found = next((made for made in _runtimes if made.settings is settings), None) or Runtime(settings)
        _runtimes[:] = [found, *(made for made in _runtimes if made is not found)][:_MOST_RUNTIMES]
        return found


# -- publishing ----------------------------------------------------------------------------------------------------


_installed_app: Celery | None = None
#: Apps that we made where there was none, and the settings they were made from.
_made: WeakKeyDictionary[Celery, Settings] = WeakKeyDictionary()


def install_app(app: Celery | None) -> None:
    """Publish through this app, in every thread: Celery's own current app is one thread's."""
    global _installed_app
    _installed_app = app


def current_site_app() -> Celery | None:
    """The app of the site that calls, else the one installed, else Celery's current one; None if there is none."""
    if seams.app_here is not None and (here := seams.app_here()) is not None:
        return cast(Celery, here)
    if _installed_app is not None:
        return _installed_app
    app = current_app._get_current_object()
    nobodys = app.main == "default" and not app.set_as_current and not app.configured
    return None if nobodys else app


def app_in_use() -> Celery:
    """The site's app; where none was made, ours, from the settings."""
    app = current_site_app()
    if app is None or (app in _made and _made[app] is not current_settings()):  # another site's broker
        app = make_app(current_settings())
        _made[app] = current_settings()
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


def publish(message: Message) -> None:
    """Send one chain. Raises TransientError if the broker does not take it: the record's due time brings it back."""
    try:
        app = app_in_use()
        check_not_eager(app)
        queue_of(app, message.queue)
        with app.producer_pool.acquire(block=True, timeout=10) as producer:
            over_redis = producer.connection.transport.driver_type == "redis"
            made = _chain(app, message, _BEHIND if message.large and over_redis else {})
            made.apply_async(producer=producer, retry=True, retry_policy=_PUBLISH_RETRY)
    except _BROKER_TROUBLE as error:
        raise TransientError(_told_of_broker(error), code="broker_unavailable") from error
    except (KeyError, ValueError, ImportError) as error:  # kombu's error for a URL that it does not know
        words = f"the broker's URL cannot be used (BATCHPIPE_BROKER_URL): {type(error).__name__}"
        raise SettingsError(words) from error


def _told_of_broker(error: Exception) -> str:
    answer = next((it for it in (error, error.__cause__) if isinstance(it, RedisAnswer)), None)
    if answer is not None:
        return f"the broker refused: {in_words(answer)}"
    said = without_secrets(str(error))  # the error of a library may name the URL
    if isinstance(error, AMQPError):
        return f"the broker refused: {said}: {type(error).__name__}"
    why = re.sub(r"^\[Errno -?\d+\] ", "", said).rstrip(".") or type(error).__name__
    return (
        f"the broker {unreachable(error) or f'cannot be reached: {why}'}; start it, or correct its address: "
        "BATCHPIPE_BROKER_URL, else BATCHPIPE_REDIS_URL"
    )


def _subject(job: str, index: int) -> str:
    """What a task is about; Flower and Celery's log show this in place of its arguments."""
    return job if index == JOB else f"{job} shard {index}"


def _chain(app: Celery, message: Message, of_transfers: dict[str, Any]) -> Any:
    names = links_from(message)
    shown = {"argsrepr": _subject(message.job, message.index), "kwargsrepr": ""}
    ids = message.task_ids[-len(names) :]
    later = {"countdown": countdown_of(app, message.countdown)} if message.countdown else {}
    arguments = {"job": message.job, "shard": message.index, "epoch": message.epoch}
    # immutable: no link is handed the result of the one before it
    return chain(
        *(
            signature(
                f"batchpipe.{name}",
                kwargs=arguments,
                immutable=True,
                app=app,
                options={
                    "task_id": task_id,
                    "queue": message.queue,
                    **shown,
                    **(later if task_id == ids[0] else {}),
                    **(of_transfers if name in _TRANSFERS else {}),
                },
            )
            for name, task_id in zip(names, ids, strict=True)
        )
    )


def revoke(task_ids: Sequence[str]) -> None:
    """Tell all workers to skip these tasks. Lost when no worker is up: an accelerator, never the truth."""
    if not task_ids:
        return
    try:
        app_in_use().control.revoke(list(task_ids))
    except _BROKER_TROUBLE as error:
        logger.warning("revoke not sent: %s", type(error).__name__)


def forget_queue(queue: str) -> None:
    """Remove a queue that nobody will use again: the one of a ``run`` that has ended."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            known = queue_of(app, queue).bind(connection.default_channel)
            known.declare()  # with Redis, kombu deletes a queue only if this connection knows it
            known.delete()
    except _BROKER_TROUBLE as error:
        logger.debug("queue %s not removed: %s", queue, error)


def waiting_in(queue: str) -> int | None:
    """How many messages wait in a queue, including those of lower priority; None if this broker does not tell."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            # a channel of its own: a broker that does not know the queue closes it
            return int(connection.channel().queue_declare(queue, passive=True).message_count)
    except ChannelError as error:
        return 0 if str(error.reply_code) == "404" else None
    except (*_BROKER_TROUBLE, SettingsError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None


def queues_of_workers() -> dict[str, list[str]] | None:
    """Queue -> names of the workers that answer within a second; None if the broker does not answer."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            replies = app.control.inspect(timeout=1.0, connection=connection).active_queues() or {}
    except _BROKER_TROUBLE:
        return None
    found: dict[str, list[str]] = {}
    for worker, queues in replies.items():
        for item in queues:
            found.setdefault(item.get("name"), []).append(worker)
    return found


def broker_refusal() -> str | None:
    """What a Redis broker refuses to workers of this user, in one line; None if nothing, or for another broker.

    This tries what a worker does at its start: subscribe to broadcasts, and send events.
    """
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            channel = connection.default_channel
            if connection.transport.driver_type != "redis":
                return None
            with channel.client.pubsub() as heard:
                heard.psubscribe(f"{channel.keyprefix_fanout}{app.conf.control_exchange}.pidbox")
                heard.parse_response()
            replies = f"batchpipe-check.reply.{app.conf.control_exchange}.pidbox"
            for key in (
                channel.keyprefix_queue % "batchpipe-check",
                replies,
            ):  # there is nothing to delete, so nothing is written
                channel.client.lpushx(f"{channel.global_keyprefix}{key}", "")
            channel.client.publish(f"{channel.keyprefix_fanout}{app.conf.event_exchange}/batchpipe.check", "")
    except _BROKER_TROUBLE as error:
        return next((in_words(it) for it in (error, error.__cause__) if isinstance(it, RedisAnswer)), None)
    return None


def on_end(name: str, listener: Callable[[str], None] | None) -> None:
    """Call this with the id of each job that ends in this process, at least once each (None: no longer).

    If it raises, it is called again. Frameworks connect their signals here.
    """
    if listener is None:
        seams.listeners.pop(name, None)
    else:
        seams.listeners[name] = listener


def tell(job: JobRecord) -> None:
    """Send the job's ``on_done`` under a fixed task id, and call the listeners; at least once. Raises TransientError.

    The job of a site is told only to that site's listeners; if they are not registered here, to none.
    """
    if job.on_done is not None and not job.notify_attempts:  # else it was sent, and only listeners were not called
        try:
            signature(job.on_done, app=app_in_use()).apply_async(args=(job.id,), task_id=f"{job.id}-done", retry=True)
        except _BROKER_TROUBLE as error:
            raise TransientError(f"on_done not sent: {type(error).__name__}", code="broker_unavailable") from error
    if missing := [name for name in job.notify_sites if name not in seams.listeners]:
        raise _not_loaded(job, missing)
    for name, listener in list(seams.listeners.items()):
        if job.notify_sites and name in seams.SITES and name not in job.notify_sites:
            continue
        try:
            listener(job.id)
        except SoftTimeLimitExceeded:  # the worker's limit, not an error of the receiver
            raise
        except Exception as error:  # it is the site's code
            message = f"{name} failed: {type(error).__name__}: {without_secrets(str(error))}"
            if job.receiver_errors:
                logger.warning("%s", _line(message), extra={"event": "unheard", "job": job.id})
            else:
                logger.exception("%s failed for job %s", name, job.id, extra={"event": "unheard"})
            raise NotDelivered(message, raised=True) from error


def _not_loaded(job: JobRecord, names: Sequence[str]) -> NotDelivered:
    frameworks = ", ".join(seams.SITES[name][0] if name in seams.SITES else name for name in names)
    message = (
        f"this worker has not loaded the site with the receivers of this job ({frameworks}): "
        f"start it as {seams.worker_of(names)}"
    )
    if job.notify_attempts == job.receiver_errors:  # once, since later tries say the same
        logger.warning("job %s has ended: %s", job.id, message, extra={"event": "unheard"})
    return NotDelivered(message, raised=False)


# -- the tasks -----------------------------------------------------------------------------------------------------


class _Limit:
    """A task's time limit in seconds, from the settings in use: they may be known only once a site is loaded.

    A site's own task_time_limit would end a long transfer again and again.
    """

    def __init__(self, name: str, *, hard: bool) -> None:
        self._name, self._hard = name, hard

    def __get__(self, instance: object, owner: type) -> int:
        try:
            settings = current_settings()
        except SettingsError:  # reported elsewhere, and by each task
            settings = Settings.model_construct()
        return task_limit(settings, self._name) + (HARD_AFTER_SOFT_SECONDS if self._hard else 0)


def _limits(name: str) -> dict[str, Any]:
    return {"time_limit": _Limit(name, hard=True), "soft_time_limit": _Limit(name, hard=False)}


_OPTIONS: dict[str, Any] = {
    "bind": True,
    "Request": "batchpipe.tasks.request:TaskRequest",
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
            return pulse_expires(self._pace(current_settings()))
        except SettingsError:  # reported elsewhere
            return None


#: Whether this process runs beat: not every version of beat marks its messages.
_beats = threading.Event()
for _signal in (signals.beat_init, signals.beat_embedded_init):
    _signal.connect(lambda **_: _beats.set(), weak=False, dispatch_uid="batchpipe-beats")


class Pulse(Task):  # type: ignore[misc]
    """A task that beat sends every few seconds: not while an earlier message must still be waiting."""

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Like Celery's own; returns None if beat sends it and its last message still waits."""
        of_beat = _beats.is_set() or (options.get("headers") or {}).get("celery_beat_task")
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
            store.queues.note_pulse(self.name, taken=store.now())
            if queue := (self.request.delivery_info or {}).get("routing_key"):
                store.queues.note_taken(queue)


#: Options of the tasks that beat sends every few seconds: anybody who watches tasks would drown in them.
PULSE = {
    **{name: _OPTIONS[name] for name in ("ignore_result", "serializer", "rate_limit")},
    **_limits("sweep"),
    "acks_late": False,
    "send_events": False,
}


def pulse_options(pace: Callable[[Settings], float]) -> dict[str, Any]:
    """Options of a task that beat sends at this pace (seconds): its messages expire whatever beat's entry says."""
    return {**PULSE, "base": Pulse, "expires": _Expires(pace)}


#: Options of the tasks of a job, by name.
OPTIONS = {
    f"batchpipe.{name}": {**_OPTIONS, **_limits(name)}
    for name in ("prepare", "upload", "create", "poll", "download", "merge")
}


#: The prefix of the displayed arguments of a retried task.
LAST_TIME = "last time: "


class Waiting(Exception):
    """Not an error: why a task is retried later, for Celery's log and for monitors."""

    def __repr__(self) -> str:
        return str(self)


def _later(task: Any, again: Retry) -> BaseException:
    """Let Celery retry the task. ``task.retry`` keeps its id and the rest of its chain, but not its displayed args."""
    about, why = task.request.kwargs or {}, _line(again.why) or "its turn is still to come"
    retry: BaseException = task.retry(
        countdown=countdown_of(task.app, again.after),
        exc=Waiting(why),
        argsrepr=_subject(about.get("job", ""), about.get("shard", JOB)),
        kwargsrepr=f"{LAST_TIME}{why}; again after {again.after:.0f} s",
    )
    return retry


def _answer(task: Any, turn: Callable[[], Next]) -> str | None:
    """Do a turn and tell Celery what follows. Returns the outcome in words, for people who watch the tasks."""
    try:
        following = turn()
    except StoreUnavailable as error:
        runtime().shards.counters.wait("redis", REDIS_PAUSE_SECONDS)
        ids = {name: value for name, value in task.request.kwargs.items() if name in ("job", "shard")}
        logger.warning("%s: %s", task.name, error, extra={"event": "redis_away", **ids})
        following = Retry(REDIS_PAUSE_SECONDS, str(error))
    except SettingsError as error:  # settings of this process: where it looks for the record is unknown, or wrong
        logger.error("%s: %s", task.name, error, extra={"event": "settings"})
        following = Retry(SETTINGS_PAUSE_SECONDS, str(error))
    except SoftTimeLimitExceeded:  # raised while the turn's end was written; its lease expires by itself
        following = Retry(REDIS_PAUSE_SECONDS, "the worker's soft time limit was met")
    if isinstance(following, Retry):
        raise _later(task, following)
    if isinstance(following, Done):
        task.request.chain = None  # else Celery publishes the next link
    return _line(following.why) or None


#: The slots of this worker, or of the worker that forked this process; None if there is no limit.
_slots: Slots | None = None


def bound_long_tasks(at_once: int) -> None:
    """Keep some of this worker's capacity for short tasks; call it before its pool forks. With one task at once, none
    can be kept. Raises StorageTrouble without a folder for temporary files.
    """
    global _slots
    _slots = Slots(at_once, nameless_file()) if at_once > 1 else None


def _bounded(kind: Kind, job: str, index: int, epoch: int, turn: Callable[[], Next]) -> Next:
    """Take a turn that may be long, if this worker has a slot for it; else its task is retried later."""
    if (slots := _slots) is None:
        return turn()
    with slots.take(kind) as taken:
        if taken:
            return turn()
    after = slots.wait(kind)
    with suppress(RecordUnreadable):  # its turn notes that
        if runtime().store.queues.requeue(job, index, epoch, after, small=(SMALL_BYTES, SMALL_ROWS)) == "later":
            return Retry(after, "this worker is busy with others of its kind", "slots")
    return turn()


def _transfer(task: Any, link: str, job: str, shard: int, epoch: int) -> str | None:
    def turn() -> Next:
        return runtime().shards.run(link, job, shard, epoch)

    return _answer(task, lambda: _bounded("transfer", job, shard, epoch, turn))


def _line(text: str) -> str:
    return printable(without_secrets(" ".join(text.split())))[:300]


@shared_task(name="batchpipe.prepare", **OPTIONS["batchpipe.prepare"])
def prepare(self: Any, *, job: str, epoch: int, shard: int = JOB, **newer: Any) -> str | None:
    """Check and split a job's input, plan its shards."""
    return _answer(self, lambda: _bounded("job", job, JOB, epoch, lambda: runtime().jobs.prepare(job, epoch)))


@shared_task(name="batchpipe.upload", **OPTIONS["batchpipe.upload"])
def upload(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Upload a shard's file."""
    return _transfer(self, "upload", job, shard, epoch)


@shared_task(name="batchpipe.create", **OPTIONS["batchpipe.create"])
def create(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Create a shard's batch, once."""
    return _answer(self, lambda: runtime().shards.run("create", job, shard, epoch))


@shared_task(name="batchpipe.poll", **OPTIONS["batchpipe.poll"])
def poll(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Look at a shard's batch; retry by countdown until it has ended."""
    return _answer(self, lambda: runtime().shards.run("poll", job, shard, epoch))


@shared_task(name="batchpipe.download", **OPTIONS["batchpipe.download"])
def download(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> str | None:
    """Download a shard's results and account for its rows."""
    return _transfer(self, "download", job, shard, epoch)


@shared_task(name="batchpipe.merge", **OPTIONS["batchpipe.merge"])
def merge(self: Any, *, job: str, epoch: int, shard: int = JOB, **newer: Any) -> str | None:
    """Merge a job's results, record its end, notify."""
    return _answer(self, lambda: _bounded("job", job, JOB, epoch, lambda: runtime().jobs.merge(job, epoch)))


@shared_task(name="batchpipe.sweep", **pulse_options(lambda settings: settings.sweep_seconds))
def sweep(**newer: Any) -> int:
    """Publish overdue work again."""
    try:
        return sweep_once(runtime().jobs)
    except BatchpipeError as error:  # Redis is away, or the settings are wrong: one line, every few seconds
        logger.warning("not swept: %s", error, extra={"event": "not_swept"})
        return 0
    except SoftTimeLimitExceeded:
        logger.warning("a sweep met the worker's soft time limit; the next one goes on", extra={"event": "time_limit"})
        return 0
