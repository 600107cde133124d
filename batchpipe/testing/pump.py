"""Real jobs on the real pipeline and scripts, without Celery, threads or waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fakeredis
import orjson
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import StoreUnavailable
from batchpipe.model.provider import Provider
from batchpipe.model.records import JOB, JobRecord, ShardRecord, State, new_job_id
from batchpipe.model.retry import REDIS_PAUSE_SECONDS
from batchpipe.pipeline.job_runner import JobRunner
from batchpipe.pipeline.manifest import results_place
from batchpipe.pipeline.messages import Continue, Message, Next, Retry
from batchpipe.pipeline.recipes import write_recipe
from batchpipe.pipeline.shard_runner import ShardRunner
from batchpipe.pipeline.sweep import sweep
from batchpipe.storage import Folder, place_name
from batchpipe.store import Connection, Store, new_task_ids
from batchpipe.testing.provider import FakeOpenAI


def new_redis() -> Any:
    """A client of an empty Redis in memory."""
    return fakeredis.FakeRedis(decode_responses=True)


class Vanished(BaseException):
    """Simulates a worker that dies here. Let ``fail_next`` raise it: the Pump then drops that turn, as a kill does."""


@dataclass(frozen=True)
class Delivery:
    """A message on its way: at ``at`` the link ``link`` of its chain runs."""

    at: float
    message: Message
    link: str


class Pump:
    """Drives real jobs without Celery: delivers messages in order of their time, sweeps what is overdue.

    ``copies`` decides for each published message how often it arrives (0: lost, 2: doubled); ``waiting`` may be
    changed between two steps. Only ``advance`` and the runs move the clock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        api: FakeOpenAI | None = None,
        notify: Callable[[JobRecord], None] = lambda job: None,
        store: Store | None = None,
        **settings: Any,
    ) -> None:
        """``folder`` holds inputs, outputs and local state; ``settings`` are fields of ``Settings``."""
        self.folder = folder
        self.settings = Settings(
            _env_file=None,
            **{"home": folder / "home", "accounts": {"default": Account(api_key=SecretStr("test"))}, **settings},
        )
        self.at = time.time()
        self.redis_off = 0.0  #: how much Redis' clock differs from all others
        self.store = store or Store(Connection(new_redis()))
        self.store.connection.lease_seconds = self.settings.lease_seconds
        self.store.connection.skew = lambda: self.at + self.redis_off - time.time()
        self.store.connection.host_time = lambda: self.at
        self.api = api or FakeOpenAI(autofinish=True)
        self.api.clock = lambda: self.at
        self.copies: Callable[[Message], int] = lambda message: 1
        #: The length of a queue; None, as with brokers that do not tell it.
        self.waiting_in: Callable[[str], int | None] = lambda queue: None
        self.published: list[Message] = []
        self.waiting: list[Delivery] = []
        self.notified: list[JobRecord] = []  #: jobs as they were told, tries that failed too
        self.vanished = 0  #: turns and sweeps that ended in ``Vanished``
        self._notify_user = notify

        def apis(account: str) -> Provider:
            return self.api

        self.shard_runner = ShardRunner(self.settings, self.store, apis, self._publish)
        self.job_runner = JobRunner(
            self.settings, self.store, apis, self._publish, self._notify, waiting_in=self._waiting_in
        )

        self.shard_runner.sleep = self.job_runner.sleep = self.advance

    # -- what a user does ------------------------------------------------------------------------------------------

    def submit(self, rows: Iterable[Mapping[str, Any]] | bytes, **fields: Any) -> str:
        """Record a job for these rows (or raw bytes) and publish it. ``fields`` are fields of ``JobRecord``, and
        ``recipe`` a ``Recipe``.
        """
        job_id, recipe = fields.pop("id", None) or new_job_id(), fields.pop("recipe", None)
        home = self.folder / job_id
        with Folder(str(home)).writer("input.jsonl") as file:
            file.write(rows if isinstance(rows, bytes) else b"".join(orjson.dumps(dict(row)) + b"\n" for row in rows))
        record = JobRecord(
            id=job_id,
            **{
                "epoch": 1,
                "task_ids": new_task_ids(1),
                "input": str(home / "input.jsonl"),
                "output": str(home / "out"),
                "owns": [place_name(str(fields.get("output", home / "out")))],
                "workspace": str(home / "out" / ".batchpipe" / job_id),
                "max_rows": self.settings.max_rows,
                "attempts": self.settings.attempts,
                **fields,
            },
        )
        if recipe is not None:
            digest = write_recipe(Folder(record.workspace, private=True), recipe)
            record = record.evolve(recipe=digest, endpoint=recipe.endpoint)
        self.store.jobs.submit(record)
        self.job_runner.publish(Message(job_id, JOB, 1, State.PENDING, record.task_ids, record.queue))
        return job_id

    def cancel(self, job_id: str) -> None:
        """Like ``client.cancel``, but its revokes are lost, which may happen."""
        asked, shards = self.store.jobs.cancel(job_id)
        for index in (JOB, *range(shards)) if asked else ():
            self.job_runner.republish(job_id, index)

    def job(self, job_id: str) -> JobRecord:
        return self.store.jobs.get(job_id)

    def shards(self, job_id: str) -> list[ShardRecord]:
        return list(self.store.shards.of_job(self.job(job_id)))

    def outcomes(self, job_id: str) -> dict[str, str]:
        """custom_id -> ok, failed or missing, from the result files. Raises ValueError if one is there twice."""
        job, found = self.job(job_id), dict[str, str]()
        if not job.results:
            return found
        output = results_place(job)
        for name in ("output.jsonl", "errors.jsonl"):
            with output.reader(name) as lines:
                for row in map(orjson.loads, lines):
                    if row["custom_id"] in found:
                        raise ValueError(f"{row['custom_id']} is there twice")
                    found[row["custom_id"]] = row["outcome"] if name == "errors.jsonl" else "ok"
        return found

    # -- time ------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Move the clock: the hosts', the provider's and Redis'."""
        self.at += seconds

    def step(self) -> Delivery | None:
        """Deliver the next message that is due. Returns it, or None if there is none."""
        due = [delivery for delivery in self.waiting if delivery.at <= self.at]
        if not due:
            return None
        delivery = min(due, key=lambda delivery: delivery.at)
        self.waiting.remove(delivery)
        try:
            following = self._turn(delivery)
        except Vanished:
            self.vanished += 1
            return delivery
        except StoreUnavailable:
            following = Retry(REDIS_PAUSE_SECONDS)
        if isinstance(following, Retry):
            self.waiting.append(Delivery(self.at + following.after, delivery.message, delivery.link))
        elif isinstance(following, Continue):
            links = delivery.message.links()
            rest = [following.link] if following.link else links[links.index(delivery.link) + 1 :]
            for link in rest[:1]:
                self.waiting.append(Delivery(self.at + following.after, delivery.message, link))
        return delivery

    def sweep(self) -> int:
        """One pass of the safety net. Its process may die, too: then it has done what it has done."""
        try:
            return sweep(self.job_runner)
        except Vanished:
            self.vanished += 1
            return 0

    def run_until_idle(self, max_seconds: float = 172_800.0, *, sweeping: bool = True) -> None:
        """Deliver, sweep and move the clock until nothing is left to do.

        Raises TimeoutError when ``max_seconds`` have passed on the clock. ``sweeping=False``: no sweeps; it
        ends when no message is left.
        """
        ends = self.at + max_seconds
        while True:
            if self.step() is not None:
                continue
            moments = [delivery.at for delivery in self.waiting]
            due = self._next_due() if sweeping else None
            if due is not None:
                moments.append(due)
            if not moments:
                return
            if min(moments) > ends:
                raise TimeoutError(f"not idle after {max_seconds:g} s: {len(self.waiting)} messages, {self._open()}")
            self.advance(max(min(moments) - self.at, 0.0) + 0.001)
            if due is not None and due <= self.at and not self.sweep() and self.step() is None:
                self.advance(self.settings.sweep_seconds)

    def run_for(self, seconds: float, *, pace: float = 5.0, sweeping: bool = True) -> None:
        """What workers and sweeps do within so many seconds: every ``pace`` seconds what is due, and a sweep."""
        ends = self.at + seconds
        while self.at < ends:
            self.run_due()
            if sweeping:
                self.sweep()
            self.advance(pace)

    def run_due(self) -> None:
        """Deliver what is due now, and what follows from it at once."""
        while self.step() is not None:
            pass

    def _open(self) -> list[str]:
        return [f"{job}/{index}" for job, index in self.store.due.overdue()]

    def _next_due(self) -> float | None:
        first = cast(
            Any, self.store.connection.client.zrange(f"{self.store.connection.prefix}due", 0, 0, withscores=True)
        )
        return float(first[0][1]) if first else None

    # -- inside ----------------------------------------------------------------------------------------------------

    def _turn(self, delivery: Delivery) -> Next:
        message = delivery.message
        runner = self.job_runner if message.index == JOB else self.shard_runner
        return runner.run(delivery.link, message.job, message.index, message.epoch)

    def _publish(self, message: Message) -> None:
        self.published.append(message)
        first = message.links()[0]
        self.waiting += [Delivery(self.at + message.countdown, message, first)] * self.copies(message)

    def _waiting_in(self, queue: str) -> int | None:
        return self.waiting_in(queue)

    def _notify(self, job: JobRecord) -> None:
        self.notified.append(job)
        self._notify_user(job)
