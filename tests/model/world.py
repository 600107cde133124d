"""One job, its workers, its provider and its Redis, on one clock: the shipped turns and scripts, each step apart.

Real are: the scripts, the store, ShardRunner with the steps upload, create and poll, JobRunner's frame and planning,
sweep. Stand-ins are what reads and writes large files (prepare, download, merge, job.json), for the protocol does not
depend on it, and renewal, which here follows the model's clock instead of a thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import redis
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import (
    StorageTrouble,
    StoreUnavailable,
    TransientError,
)
from batchpipe.model.records import JOB, JobRecord, Move, Problem, Stage, State
from batchpipe.model.retry import REDIS_PAUSE_SECONDS
from batchpipe.model.steps import Step
from batchpipe.pipeline.job_runner import JobRunner
from batchpipe.pipeline.messages import Continue, Message, Next, Retry
from batchpipe.pipeline.shard_runner import ShardRunner
from batchpipe.pipeline.shard_trouble import ShardTrouble
from batchpipe.pipeline.sharding import Prepared, ShardPlan
from batchpipe.pipeline.sweep import sweep
from batchpipe.store import JobLease, ShardLease
from batchpipe.store.scripts import source
from batchpipe.testing import Delivery
from tests.model.invariants import Broken, Watch
from tests.model.model_provider import CALL_FAULTS, ModelOpenAI
from tests.model.model_store import LEASE, ModelConnection, ModelLease, Source, model_store
from tests.model.scheduler import Actor

GRACE = 30.0


@cache
def _settings(folder: Path, polls_in_flight: int) -> Settings:
    account = Account(api_key=SecretStr("test"))
    return Settings(
        _env_file=None,
        home=folder / "home",
        accounts={"default": account},
        lease_seconds=LEASE,
        create_grace_seconds=GRACE,
        polls_in_flight=polls_in_flight,
    )


class ModelShardRunner(ShardRunner):
    """The shipped turns of shards, but for the files of download."""

    world: World

    def _step(self, step: Step, lease: ShardLease, api: Any) -> Any:
        if step.name != "download":
            return super()._step(step, lease, api)
        self.world.files()
        lease.check()
        return Move(stage=Stage.COLLECTED, changes={"ok": lease.shard.rows})


class ModelTrouble(ShardTrouble):
    """What trouble means as it is shipped, but for the files of a shard that is given up; none may be unforeseen."""

    def __init__(self, runner: ModelShardRunner) -> None:
        super().__init__(runner)
        self.world = runner.world

    def unforeseen(self, step: Step, lease: ShardLease, problem: Problem) -> Any:
        raise Broken(problem.message)

    def abandon(self, lease: ShardLease, problem: Problem, **how: Any) -> Move:
        self.world.watch.facts[f"abandoned: {problem.code}"] += 1
        return Move(stage=Stage.COLLECTED, changes={"missing": lease.shard.rows, "error": problem})


class ModelJobRunner(JobRunner):
    """The shipped turns of the job, but for the files of prepare, merge and job.json; every round but the last leads
    to a further one."""

    world: World

    def _prepare(self, lease: JobLease) -> str:
        self.world.files()
        return self._plan(lease, Prepared([], 0, None) if lease.job.cancel else self._prepared(lease.job))

    def _merge(self, lease: JobLease) -> str:
        job = lease.job
        if State(job.stage).ended:
            self._close(lease, State(job.stage))
            return ""
        self.world.files()
        if not job.cancel and job.round < job.attempts:
            return self._plan(lease, self._prepared(job))
        lease.check()
        return self._finish(lease, State.SUCCEEDED, {"ok": 1})

    def _trouble(self, lease: JobLease, error: Exception) -> Next:
        if not isinstance(error, TransientError):
            raise error
        return super()._trouble(lease, error)

    def _prepared(self, job: JobRecord) -> Prepared:
        indexes = range(job.shards, job.shards + self.world.shards_a_round)
        return Prepared([ShardPlan(index, "requests.jsonl", 1, 1, None) for index in indexes], len(indexes), None)

    def _close(self, lease: JobLease, state: State) -> None:
        self.world.files()
        self.world.notified += 1
        lease.stop()
        self.store.leases.close_job(lease)


class World:
    """Everything of one schedule. ``actor`` is who runs now: None is the schedule itself, which nobody stops."""

    def __init__(
        self,
        client: redis.Redis,
        folder: Path,
        *,
        rounds: int = 1,
        shards: int = 1,
        text: Source = source,
        parks: bool = False,
    ) -> None:
        """``parks``: polls are parked wherever looks succeed, however few batches are in flight."""
        self.at = time.time()
        self.redis_off = 0.0  #: how much Redis' clock differs from all others
        self.redis_moved = False
        self.actor: Actor | None = None
        self.watch = Watch()
        self.leases: dict[Actor | None, ModelLease] = {}
        self.waiting: list[Delivery] = []
        self.past: list[Delivery] = []  #: everything ever delivered: any of it may come again
        self.notified = 0
        self.story: list[tuple[float, Actor | None, str]] = []  #: for whoever reads of a broken promise
        self.shards_a_round = shards
        self.job_id = f"job_{uuid.uuid4().hex[:12]}"
        self.connection = ModelConnection(client, self, f"{{{self.job_id}}}:", text)
        self.store = model_store(self.connection)
        self.api = ModelOpenAI(self)
        settings = _settings(folder, 0 if parks else 50)
        apis = cast(Any, lambda name: self.api)
        self.shard_runner = ModelShardRunner(settings, self.store, apis, self._publish)
        self.job_runner = ModelJobRunner(settings, self.store, apis, self._publish, lambda job: None)
        self.shard_runner.world = self.job_runner.world = self
        self.shard_runner.trouble = ModelTrouble(self.shard_runner)
        self._submit(folder, rounds)

    def _submit(self, folder: Path, rounds: int) -> None:
        workspace = folder / "workspace"
        if not workspace.exists():
            workspace.mkdir()
            (workspace / "requests.jsonl").write_text('{"custom_id":"a"}\n')
        job = JobRecord(
            id=self.job_id,
            epoch=1,
            task_ids=["prepare"],
            output=self.job_id,
            workspace=str(workspace),
            attempts=rounds,
        )
        self.store.jobs.submit(job)
        self.job_runner.publish(Message(job.id, JOB, 1, State.PENDING, job.task_ids, job.queue))

    def close(self) -> None:
        """Leave nothing behind in Redis."""
        keys = self.store.connection.client.keys(f"{self.store.connection.prefix}*")
        if keys:
            self.store.connection.client.delete(*cast(list[str], keys))
        self.connection.close()

    def tell(self, words: str) -> None:
        self.story.append((self.at, self.actor, words))

    # -- what happens to actors ------------------------------------------------------------------------------------

    def point(self, name: str = "") -> None:
        """Something could come in between here."""
        if self.actor is not None:
            self.actor.point(name)

    def files(self) -> None:
        """What takes long, and fails now and then. Raises StorageTrouble."""
        self.point()
        if self.take_fault(CALL_FAULTS):
            raise StorageTrouble("the disk is full")

    def take_fault(self, kinds: tuple[str, ...]) -> str:
        """What befalls the present script or call, if it is of such a kind."""
        if self.actor is None or self.actor.fault not in kinds:
            return ""
        fault, self.actor.fault = self.actor.fault, ""
        self.watch.facts[fault] += 1
        return fault

    def hand_over(self, actor: Actor, act: Callable[[], bool]) -> bool:
        """Let an actor act. True: it came to the end of its body."""
        self.actor = actor
        try:
            return act()
        finally:
            self.actor = None
            if not actor.parked:
                self.leases.pop(actor, None)

    # -- messages --------------------------------------------------------------------------------------------------

    def _publish(self, message: Message) -> None:
        self.point()
        first = message.links()[0]
        self.waiting.append(Delivery(self.at + message.countdown, message, first))
        self.point()

    def turn(self, delivery: Delivery) -> Next:
        """What a worker does with a message."""
        message = delivery.message
        try:
            runner = self.job_runner if message.index == JOB else self.shard_runner
            return runner.run(delivery.link, message.job, message.index, message.epoch)
        except StoreUnavailable:
            return Retry(REDIS_PAUSE_SECONDS)

    def follow(self, delivery: Delivery, following: Next | None) -> None:
        """What Celery does when a turn is over."""
        if isinstance(following, Retry):
            self.waiting.append(Delivery(self.at + following.after, delivery.message, delivery.link))
        elif isinstance(following, Continue):
            links = delivery.message.links()
            for link in links[links.index(delivery.link) + 1 :][:1]:
                self.waiting.append(Delivery(self.at + following.after, delivery.message, link))

    def take(self, delivery: Delivery) -> Delivery:
        """A message leaves the broker for a worker."""
        self.waiting.remove(delivery)
        self.past.append(delivery)
        return delivery

    # -- what others do --------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """As the client does; its revokes are lost, as they may be."""
        asked, shards = self.store.jobs.cancel(self.job_id)
        for index in (JOB, *range(shards)) if asked else ():
            self.job_runner.republish(self.job_id, index)

    def sweep(self, *, listing: bool | None = None) -> None:
        sweep(self.job_runner, listing=listing)

    def move_redis_clock(self, to: float) -> None:
        self.redis_off, self.redis_moved = to, True
        self.watch.facts["clock moved"] += 1

    # -- time ------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Move the clock; who is not frozen renews meanwhile."""
        ends = self.at + seconds
        while True:
            renewing = [
                lease
                for actor, lease in self.leases.items()
                if lease.renewing and actor is not None and not actor.frozen and lease.renew_at <= ends
            ]
            if not renewing:
                break
            lease = min(renewing, key=lambda lease: lease.renew_at)
            self.at = max(self.at, lease.renew_at)
            lease.renew_now()
        self.at = ends
