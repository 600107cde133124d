"""The Celery tasks: a few lines each. Logic is in ``pipeline.py`` and ``job_turns.py``; the chain is built here.

They are shared tasks: a site's own app and workers run them; where there is no app, one is made from the settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, chain, current_app, shared_task, signature
from celery.exceptions import OperationalError as CeleryOperationalError
from kombu.exceptions import KombuError, OperationalError

from batchpipe.celery_app import make_app
from batchpipe.errors import StoreUnavailable, TryLater
from batchpipe.job_turns import JobTurns
from batchpipe.jobs import JOB, JobRecord
from batchpipe.openai_api import Apis
from batchpipe.pipeline import Again, Message, Next, ShardTurns, Stop, links_from
from batchpipe.settings import Settings, current_settings
from batchpipe.store import Store
from batchpipe.sweep import sweep as sweep_once

logger = logging.getLogger(__name__)

#: Pause of a task that could not reach Redis at all.
REDIS_PAUSE_SECONDS = 10.0
#: A blip is bridged; a broker that is down must not hold up who submits: the sweep publishes later.
_PUBLISH_RETRY = {"max_retries": 2, "interval_start": 0.0, "interval_step": 0.5, "interval_max": 1.0}


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
        apis = Apis(settings)
        self.shards = ShardTurns(settings, self.store, apis, publish)
        self.jobs = JobTurns(settings, self.store, apis, publish, tell)


_runtime: Runtime | None = None


def runtime() -> Runtime:
    """The runtime of this process's settings. Raises SettingsError."""
    global _runtime
    settings = current_settings()
    if _runtime is None or _runtime.settings is not settings:
        _runtime = Runtime(settings)
    return _runtime


# -- publishing ----------------------------------------------------------------------------------------------------


def app_in_use() -> Celery:
    """The site's app; where none was made, ours, from the settings."""
    app = current_app._get_current_object()
    if app.main == "default" and not app.configured:
        app = make_app(current_settings())
        app.set_default()
        app.set_current()
    return app


def publish(message: Message) -> None:
    """Send one chain. Raises TryLater if the broker does not take it: the record's due time brings it back."""
    try:
        app = app_in_use()
        with app.producer_pool.acquire(block=True, timeout=10) as producer:
            _chain(app, message).apply_async(producer=producer, retry=True, retry_policy=_PUBLISH_RETRY)
    except (KombuError, OperationalError, CeleryOperationalError, OSError) as error:
        raise TryLater(f"the broker is not reachable: {type(error).__name__}", code="broker_unavailable") from error


def _chain(app: Celery, message: Message) -> Any:
    names = links_from(message)
    ids = message.task_ids[-len(names) :]
    later = {"countdown": message.countdown} if message.countdown else {}
    arguments = {"job": message.job, "shard": message.index, "epoch": message.epoch}
    # immutable: no link is handed the result of the one before it
    return chain(
        *(
            signature(
                f"batchpipe.{name}",
                kwargs=arguments,
                immutable=True,
                app=app,
                options={"task_id": task_id, "queue": message.queue, **(later if task_id == ids[0] else {})},
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
    except (KombuError, OperationalError, OSError) as error:
        logger.warning("revoke not sent: %s", type(error).__name__)


def forget_queue(queue: str) -> None:
    """Remove a queue that nobody will use again: that of a ``run`` which has ended."""
    try:
        with app_in_use().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            connection.default_channel.queue_delete(queue)
    except (KombuError, OperationalError, OSError) as error:
        logger.debug("queue %s not removed: %s", queue, error)


def workers_of_queue(queue: str) -> list[str] | None:
    """Names of the workers that listen on a queue; None if the broker does not answer."""
    try:
        app = app_in_use()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            replies = app.control.inspect(timeout=1.0, connection=connection).active_queues() or {}
    except (KombuError, OperationalError, OSError):
        return None
    return [name for name, queues in replies.items() if any(item.get("name") == queue for item in queues)]


def tell(job: JobRecord) -> None:
    """Send the job's ``on_done``, at least once, under a fixed task id. Raises TryLater."""
    if job.on_done is None:
        return
    try:
        signature(job.on_done, app=app_in_use()).apply_async(args=(job.id,), task_id=f"{job.id}-done", retry=True)
    except (KombuError, OperationalError, OSError) as error:
        raise TryLater(f"on_done not sent: {type(error).__name__}", code="broker_unavailable") from error


# -- the tasks -----------------------------------------------------------------------------------------------------

_OPTIONS: dict[str, Any] = {
    "bind": True,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "acks_on_failure_or_timeout": True,
    "ignore_result": True,
    "serializer": "json",
    "max_retries": None,  # Celery's default of 3 would end a poll at its fourth look
}


def _answer(task: Any, turn: Callable[[], Next]) -> None:
    """Do a turn and tell Celery what follows. ``task.retry`` keeps the task's id and the rest of its chain."""
    try:
        following = turn()
    except StoreUnavailable as error:
        logger.warning("%s: %s", task.name, error)
        following = Again(REDIS_PAUSE_SECONDS)
    if isinstance(following, Again):
        raise task.retry(countdown=following.after)
    if isinstance(following, Stop):
        task.request.chain = None  # else Celery publishes the next link


@shared_task(name="batchpipe.prepare", **_OPTIONS)
def prepare(self: Any, *, job: str, epoch: int, shard: int = JOB, **newer: Any) -> None:
    """Check and split a job's input, plan its shards."""
    _answer(self, lambda: runtime().jobs.prepare(job, epoch))


@shared_task(name="batchpipe.upload", time_limit=900, **_OPTIONS)
def upload(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> None:
    """Upload a shard's file."""
    _answer(self, lambda: runtime().shards.run("upload", job, shard, epoch))


@shared_task(name="batchpipe.create", time_limit=900, **_OPTIONS)
def create(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> None:
    """Create a shard's batch, once."""
    _answer(self, lambda: runtime().shards.run("create", job, shard, epoch))


@shared_task(name="batchpipe.poll", time_limit=900, **_OPTIONS)
def poll(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> None:
    """Look at a shard's batch; come back by countdown until it has ended."""
    _answer(self, lambda: runtime().shards.run("poll", job, shard, epoch))


@shared_task(name="batchpipe.download", **_OPTIONS)
def download(self: Any, *, job: str, shard: int, epoch: int, **newer: Any) -> None:
    """Download a shard's results and account for its rows."""
    _answer(self, lambda: runtime().shards.run("download", job, shard, epoch))


@shared_task(name="batchpipe.merge", **_OPTIONS)
def merge(self: Any, *, job: str, epoch: int, shard: int = JOB, **newer: Any) -> None:
    """Merge a job's results, fix its end, tell."""
    _answer(self, lambda: runtime().jobs.merge(job, epoch))


@shared_task(name="batchpipe.sweep", ignore_result=True, acks_late=False)
def sweep(**newer: Any) -> int:
    """Publish anew what is past due."""
    return sweep_once(runtime().jobs)
