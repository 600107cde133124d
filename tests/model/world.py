"""One job, its workers, its provider and its Redis, on one clock: the shipped turns and scripts, each step apart.

Real are: the scripts, the store, ShardRunner with the steps upload, create and poll, JobRunner's frame and planning,
sweep. Stand-ins are what reads and writes large files (prepare, download, merge, job.json), for the protocol does not
depend on it, and renewal, which here follows the model's clock instead of a thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
import redis
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import (
    AmbiguousResult,
    LeaseLost,
    Refused,
    StorageTrouble,
    StoreUnavailable,
    TransientError,
    Unavailable,
)
from batchpipe.model.provider import Batch, BatchPage
from batchpipe.model.records import JOB, BatchError, JobRecord, Move, Problem, Stage, State, Status
from batchpipe.model.retry import REDIS_PAUSE_SECONDS
from batchpipe.model.stats import Clock
from batchpipe.model.steps import Step
from batchpipe.pipeline.job_runner import JobRunner
from batchpipe.pipeline.messages import Continue, Message, Next, Retry
from batchpipe.pipeline.shard_runner import ShardRunner
from batchpipe.pipeline.shard_trouble import ShardTrouble
from batchpipe.pipeline.sharding import Prepared, ShardPlan
from batchpipe.pipeline.sweep import sweep
from batchpipe.store import ClaimDenied, Connection, JobLease, Lease, ShardLease, Store
from batchpipe.store.accounts import Accounts
from batchpipe.store.due import Due
from batchpipe.store.events import Events
from batchpipe.store.jobs import Jobs
from batchpipe.store.leases import Leases
from batchpipe.store.scripts import source
from batchpipe.testing import Delivery, FakeBatch, FakeOpenAI
from tests.model.invariants import Broken, Records, Watch
from tests.model.scheduler import Actor

LEASE = 60.0
GRACE = 30.0

#: Scripts that change no record.
_ABOUT_NO_RECORD = ("read_clock", "note_sweep")
#: What may befall a script: it is repeated after a lost answer, Redis is away, or went away after it ran.
SCRIPT_FAULTS = ("repeat", "away", "away after")
#: What may befall whatever else takes time: provider calls that cost nothing, files.
CALL_FAULTS = ("trouble",)
#: What may come of a create call besides "", a clear yes.
CREATE_FAULTS = ("unsent", "unanswered", "dropped", "refused", "no file")

#: Runs a script as it is shipped, and tells all records as they are after it: one round trip.
_WATCHED = """
local function script()
%s
end
local answer = script()
local job = KEYS[#KEYS - 1]
local prefix, id = string.match(job, '^(.-)job:(.*)$')
local function read(key)
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
local seen = { job = read(job), shards = {}, due = {} }
for index = 0, tonumber(seen.job.shards or '0') - 1 do
  seen.shards[tostring(index)] = read(prefix .. 'shard:' .. id .. ':' .. index)
end
local flat = redis.call('ZRANGE', prefix .. 'due', 0, -1, 'WITHSCORES')
for i = 1, #flat, 2 do seen.due[flat[i]] = tonumber(flat[i + 1]) end
return { answer, cjson.encode(seen) }
"""

Source = Callable[[str], str]


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


class ModelLease(Lease):
    """A lease by the model's clock; the world renews it while its actor is not frozen."""

    world: World
    renew_at: float

    def age(self) -> float:
        return self.world.at - self.confirmed

    def __enter__(self) -> ModelLease:
        self.renew_at = self.world.at + self.seconds / 3
        return self

    @property
    def renewing(self) -> bool:
        return not (self.lost or self._stopped)

    def renew_now(self) -> None:
        """What the renewal thread does when its pause is over."""
        before = self.world.at
        try:
            self.seconds, self.news = self._renewed()
        except LeaseLost:
            self.lost = True
            return
        self.confirmed = before
        self.renew_at = before + max(self.seconds / 3, 0.1)  # near its deadline a lease grants less and less


class ModelJobLease(ModelLease, JobLease):
    """Of a job."""


class ModelShardLease(ModelLease, ShardLease):
    """Of a shard."""


L = TypeVar("L", ModelJobLease, ModelShardLease)


class ModelConnection(Connection):
    """The real scripts, with a point before and after each, and the watch told of each."""

    def __init__(self, client: redis.Redis, world: World, prefix: str, text: Source) -> None:
        super().__init__(
            client,
            prefix=prefix,
            lease_seconds=LEASE,
            ttl_seconds=3600,
            skew=lambda: world.at + world.redis_off - time.time(),
        )
        self.host_time = lambda: world.at
        self.world = world
        self._text = text
        # past retries and pools, which the model does not need and which cost more than the script
        self._wire = client.connection_pool.get_connection()

    def close(self) -> None:
        self.client.connection_pool.release(self._wire)

    def clock(self) -> Clock:
        if not self.world.redis_moved:
            return Clock(self.world.at)  # the same, and quicker
        return super().clock()

    def run(self, name: str, keys: Sequence[str], *args: Any) -> list[Any]:
        if name in _ABOUT_NO_RECORD or not keys:
            given = [*keys, self.clock_key, f"{self.skew():.6f}", *args]
            return cast(list[Any], self._ask("EVAL", self._text(name), len(keys) + 1, *given))
        self.world.point(name)
        fault = self.world.take_fault(SCRIPT_FAULTS)
        if fault == "away":
            raise StoreUnavailable("away")
        answer = self._executed(name, keys, args)
        self.world.point(f"{name} done")
        if fault == "away after":
            raise StoreUnavailable("the answer is lost")
        if fault == "repeat":
            answer = self._executed(name, keys, args)
            self.world.point()
        return answer

    def _executed(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        job = self.job_key(self.world.job_id)
        given = [*keys, job, self.clock_key, f"{self.skew():.6f}", *args]
        answer, seen = self._ask("EVALSHA", self._sha(name), len(keys) + 2, *given)
        self.world.tell(f"{name} {keys[0].rpartition(':')[2]} {args}")
        record = "job" if keys[0] == job else keys[0].rpartition(":")[2]
        after = orjson.loads(seen)
        job_fields = after["job"] or {}
        planned = int(job_fields.get("shards", "0"))  # records beyond are drafts, which nobody sees
        shards = {index: shard for index, shard in (after["shards"] or {}).items() if int(index) < planned}
        records = Records(job_fields, shards, _named(after["due"] or {}))
        self.world.tell(f"  -> {str(answer)[:80]}")
        self.world.watch.script(name, record, args, answer, records, self.clock().now)
        return cast(list[Any], answer)

    def _sha(self, name: str) -> str:
        text = self._text(name)
        return _loaded(self, name, text)

    def _ask(self, *command: Any) -> Any:
        self._wire.send_command(*command)
        return self._wire.read_response()


class ModelLeases(Leases):
    """The real claims; their leases follow the model's clock."""

    def __init__(self, connection: ModelConnection, due: Due) -> None:
        super().__init__(connection, due)
        self.world = connection.world

    def claim_job(self, *args: Any, **named: Any) -> JobLease | ClaimDenied:
        before = self.world.at
        answer = super().claim_job(*args, **named)
        return self._denied(answer) if isinstance(answer, ClaimDenied) else self._ours(ModelJobLease, answer, before)

    def claim_shard(self, *args: Any, **named: Any) -> ShardLease | ClaimDenied:
        before = self.world.at
        answer = super().claim_shard(*args, **named)
        if isinstance(answer, ClaimDenied):
            return self._denied(answer)
        return self._ours(ModelShardLease, answer, before, shard=answer.shard)

    def _denied(self, answer: ClaimDenied) -> ClaimDenied:
        self.world.watch.facts[f"refused: {answer.why}"] += 1
        return answer

    def _ours(self, kind: type[L], answer: Lease, before: float, **more: Any) -> L:
        names = ("renewer", "job", "token", "seconds", "news", "deadline")
        lease = kind(**{name: getattr(answer, name) for name in names}, **more, confirmed=before)
        lease.world = self.world
        self.world.leases[self.world.actor] = lease
        return lease


class ModelJobs(Jobs):
    """All of one account."""

    def account_of(self, job_id: str) -> str | None:
        return "default"


class ModelAccounts(Accounts):
    """Never paused, and without a budget; polls are parked as ever."""

    def pause_of(self, account: str) -> None:
        return None

    def take_rate_token(
        self, account: str, *, per_second: float, what: str = "poll", park: tuple[int, float] | None = None
    ) -> tuple[str, float]:
        if park is None:
            return "slot", 0.0
        return super().take_rate_token(account, per_second=per_second, what="booked", park=park)


class NoEvents(Events):
    """Not kept."""

    def add(self, job_id: str, event: str, **fields: Any) -> None:
        pass


def model_store(connection: ModelConnection) -> Store:
    store = Store(connection)
    store.leases, store.jobs = ModelLeases(connection, store.due), ModelJobs(connection, store.due)
    store.accounts, store.events = ModelAccounts(connection), NoEvents(connection)
    return store


_shas: dict[tuple[int, str], str] = {}


def _loaded(connection: ModelConnection, name: str, text: str) -> str:
    """The script is sent to a server once."""
    place = (id(connection.client), text)
    if place not in _shas:
        _shas[place] = connection._ask("SCRIPT", "LOAD", _WATCHED % text)
    return _shas[place]


def _named(due: dict[str, float]) -> dict[str, float]:
    """The members of the due set as the watch names records."""
    names = {member: member.rpartition("/")[2] for member in due}
    return {"job" if name == "-1" else name: due[member] for member, name in names.items()}


class ModelOpenAI(FakeOpenAI):
    """The provider, with a point before and after each call; new batches may show up late in its list."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda: world.at, autofinish=True)
        self.world = world
        self.endings: Callable[[], str] = lambda: Status.COMPLETED  #: what becomes of a new batch
        self.outcome: Callable[[], str] = lambda: ""  #: of the present create call
        self.lag: Callable[[], float] = lambda: 0.0  #: how long a new batch stays out of the list
        self._shown_at: dict[str, float] = {}
        self._ends_as: dict[str, str] = {}

    def create_batch(self, **arguments: Any) -> Batch:
        lease = self.world.leases[self.world.actor]
        self.world.watch.calls(lease.age() <= lease.seconds / 2)
        self.world.point("create_batch")
        fault = self.outcome()
        if fault:
            self.world.watch.facts[fault] += 1
        if fault == "dropped":
            raise AmbiguousResult("dropped before it arrived")
        if fault == "refused":
            raise Refused("no", code="invalid_request", status=400)
        if fault == "unsent":
            raise Unavailable("slow down", code="rate_limit_exceeded", status=429)
        if fault == "no file":
            raise Unavailable("Cannot find file", code="file_not_found", status=400)
        batch = super().create_batch(**arguments)
        self._shown_at[batch.id] = self.world.at + self.lag()
        self._ends_as[batch.id] = self.endings()
        self.world.tell(f"create_batch -> {batch.id}, shown from {self._shown_at[batch.id] - self.world.at:+.1f}")
        late = lease.age() > lease.seconds / 2 + 0.001
        self.world.watch.called(batch.id, arguments["metadata"]["batchpipe_key"], lease.token, late)
        self.world.point()
        if fault == "unanswered":
            raise AmbiguousResult("dropped")
        return batch

    def cancel_batch(self, batch_id: str) -> Batch:
        self.world.point()
        self.world.watch.cancelled(batch_id)
        return super().cancel_batch(batch_id)

    def batch_page(self, after: str | None = None) -> BatchPage:
        """Two batches a page: a walk may fail half way, and finds nothing older than it goes back to by chance."""
        page = super().batch_page(after)
        return BatchPage(batches=page.batches[:2], more=page.more or len(page.batches) > 2)

    def _shows(self, batch: FakeBatch) -> bool:
        return self._shown_at[batch.id] <= self.world.at

    def _called(self, method: str, argument: str, effect: Callable[[], Any]) -> Any:
        if method in ("create_batch", "cancel_batch"):
            return effect()
        self.world.point()
        if self.world.take_fault(CALL_FAULTS):
            raise Unavailable("not now")
        answer = effect()
        self.world.point()
        return answer

    def _move_on(self, batch: FakeBatch) -> None:
        if batch.status == "validating":
            batch.status = "in_progress"
        elif batch.status == "in_progress":
            batch.status = self._ends_as[batch.id]
            if batch.status == Status.FAILED:
                batch.errors = [BatchError(code="token_limit_exceeded", message="the queue is full")]
        elif batch.status == "cancelling":
            batch.status = Status.CANCELLED


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
