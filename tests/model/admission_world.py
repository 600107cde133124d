"""Jobs, workers, a provider with a full queue, and the shipped scripts of admission, on one clock that the model moves.

Real are: the scripts and the store. Stand-ins are the steps, each as the sequence of its calls to store and provider,
so that a worker can die, or an answer get lost, between any two of them.
"""

from __future__ import annotations

import heapq
import random
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import redis

from batchpipe.errors import LeaseLost, StoreUnavailable
from batchpipe.model.admission import WAIT_SECONDS, Admitted, Kind, Limits, needs_of
from batchpipe.model.records import JOB, JobRecord, Move, ShardRecord, Stage, State, Status, new_job_id
from batchpipe.store import ClaimDenied, Connection, ShardLease, Store
from tests.model.limited_provider import Batch, Provider

LEASE, DEADLINE = 60.0, 600.0
#: Paces in seconds: of sweeps, of looks at batches, and of rebuilds.
SWEEP, LOOK, REBUILD = 5.0, 10.0, 120.0
UPLOAD, CALL = 2.0, 1.0
_STAGES = (Stage.PLANNED.value, Stage.UPLOADED.value, Stage.CREATED.value, Stage.ENDED.value)


@dataclass
class Faults:
    """How likely each is: of a death between two calls, of a repeated script, of an answer that is lost for good."""

    kill: float = 0.0
    repeat: float = 0.0
    lose: float = 0.0
    forget: float = 0.0  #: of a lost key of admission, at each look


class Dead(Exception):
    """The worker of this turn has vanished."""


class World:
    """Everything on one clock; ``run`` goes on until all shards are collected."""

    def __init__(
        self, client: redis.Redis, provider: Provider, *, seed: int = 0, faults: Faults | None = None, limits: Limits
    ) -> None:
        self.at, self.random, self.faults = 1_800_000_000.0, random.Random(seed), faults or Faults()
        self.provider, self.limits, self.kills, self.workers = provider, limits, 0, 50
        prefix = f"{{model-{uuid.uuid4().hex[:8]}}}:"
        connection = Connection(client, prefix=prefix, lease_seconds=LEASE, skew=lambda: self.at - time.time())
        connection.host_time = lambda: self.at
        self.store, self.connection = Store(connection), connection
        self._run = connection.run
        connection.run = self._faulty  # type: ignore[method-assign]
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.seconds: dict[tuple[str, int], float] = {}
        self.tokens: dict[tuple[str, int], int] = {}
        self.collected: dict[tuple[str, int], float] = {}
        self.jobs: dict[str, int] = {}
        self.frozen_until = 0.0
        self.done: set[str] = set()  #: batches that looks need not tell of any more
        self.scripts: dict[str, int] = {}
        self.watch: Callable[[World], None] = lambda world: None

    # -- faults ------------------------------------------------------------------------------------------------------

    def _faulty(self, name: str, keys: Any, *args: Any) -> Any:
        self.scripts[name] = self.scripts.get(name, 0) + 1
        answer = self._run(name, keys, *args)
        if self.random.random() < self.faults.repeat:
            answer = self._run(name, keys, *args)
        if self.random.random() < self.faults.lose:
            raise StoreUnavailable("lost")
        return answer

    def _forget(self) -> None:
        """Redis loses a key of admission."""
        if self.random.random() >= self.faults.forget:
            return
        found: list[str] = []
        for family in ("held", "line", "shards", "room", "lines", "fair", "granted", "rooms"):
            found += self.connection.client.scan_iter(f"{self.connection.prefix}{family}:*")
        if found:
            self.connection.client.delete(self.random.choice(sorted(found)))

    # -- time --------------------------------------------------------------------------------------------------------

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.at + seconds, next(self._order), what))

    def publish(self, job: str, index: int, epoch: int, after: float = 0.0) -> None:
        self.after(after, lambda: self._start(job, index, epoch))

    def republish(self, job: str, index: int, when: Any) -> None:
        new = self.store.due.bump_epoch(job, index, ["a", "b", "c", "d"], when=when)
        if new is not None and index != JOB:
            self.publish(job, index, new.epoch)

    def run(self, longest: float) -> float:
        """Returns how long it took. Raises AssertionError if something is stuck."""
        begun = self.at
        self.after(0.0, self._sweep)
        self.after(0.0, self._look)
        self.after(REBUILD, self._rebuild)
        while len(self.collected) < (total := sum(self.jobs.values())):
            at, _, what = heapq.heappop(self.events)
            self.at = max(self.at, at)
            assert self.at - begun < longest, f"stuck: {len(self.collected)} of {total}"
            self.provider.go_on(self.at)
            with suppress(StoreUnavailable):
                what()
            self.watch(self)
        return max(self.collected.values()) - begun

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(
        self, shards: list[tuple[int, float]], *, model: str = "m", account: str = "default", priority: int = 0
    ) -> str:
        """A running job with shards of so many bytes, whose batches take so long; four bytes are a token."""
        kill, self.faults = self.faults, Faults()
        job = JobRecord(id=new_job_id(), account=account, output="/o", epoch=1, task_ids=["p"])
        self.store.jobs.submit(job)
        if priority:
            self.connection.client.hset(self.connection.job_key(job.id), "priority", priority)
        lease = self.store.leases.claim_job(job.id, 1, [State.PENDING.value], deadline=300, enter=State.PREPARING.value)
        assert not isinstance(lease, ClaimDenied)
        records = [
            ShardRecord(job=job.id, index=i, epoch=1, rows=1, bytes=size, file="f", model=model, task_ids=["a"])
            for i, (size, _) in enumerate(shards)
        ]
        self.store.leases.plan(lease, {"round": 1, "total": len(shards)}, records, ["m"])
        self.jobs[job.id] = len(shards)
        for index, (size, seconds) in enumerate(shards):
            self.seconds[job.id, index], self.tokens[job.id, index] = seconds, size // 4
            self.publish(job.id, index, 1)
        self.faults = kill
        return job.id

    # -- turns ---------------------------------------------------------------------------------------------------------

    def _start(self, job: str, index: int, epoch: int) -> None:
        self._go_on(self._turn(job, index, epoch))

    def _go_on(self, turn: Generator[float, None, None]) -> None:
        try:
            pause = next(turn)
        except (StopIteration, LeaseLost, StoreUnavailable):
            return
        if self.random.random() < self.faults.kill:
            self.kills += 1
            return
        self.after(pause, lambda: self._go_on(turn))

    def _turn(self, job: str, index: int, epoch: int) -> Generator[float, None, None]:
        lease = self.store.leases.claim_shard(job, index, epoch, _STAGES, deadline=DEADLINE)
        if isinstance(lease, ClaimDenied):
            if lease.why in ("lease", "early"):
                self.publish(job, index, epoch, lease.after)
            return
        yield 0.0
        steps = {"planned": self._upload, "uploaded": self._create, "created": self._poll, "ended": self._download}
        yield from steps[lease.shard.stage](lease)

    def _end(self, lease: ShardLease, stage: Stage, after: float, *, message: bool = True, **changes: Any) -> None:
        move = Move(stage=stage, after=after, changes=changes)
        news, _ = self.store.leases.advance(lease, move, tries="refund", merge_ids=["m"])
        if news.republish:
            self.republish(lease.job.id, lease.index, "always")
        elif message:
            self.publish(lease.job.id, lease.index, lease.shard.epoch, after)

    def _tell(self) -> None:
        for job, index in self.store.admission.take_granted():
            self.republish(job, index, "overdue")

    def _needs(self, shard: ShardRecord, *, upload: bool) -> dict[Kind, int]:
        needs = needs_of(shard.bytes, 0.25, upload=upload)
        return needs | {"tokens": self.tokens[shard.job, shard.index]}

    def _upload(self, lease: ShardLease) -> Generator[float, None, None]:
        if not isinstance(
            self.store.admission.admit(lease, self._needs(lease.shard, upload=True), self.limits), Admitted
        ):
            yield 0.0
            self._end(lease, Stage.PLANNED, WAIT_SECONDS, message=False)
            yield 0.0
            return self._tell()
        yield UPLOAD
        self._end(lease, Stage.UPLOADED, 0.0, file_id="file")

    def _create(self, lease: ShardLease) -> Generator[float, None, None]:
        shard = lease.shard
        if shard.intent_at and shard.key in self.provider.by_key:
            yield CALL
            self._settle(lease, self.provider.by_key[shard.key])
            return
        for _ in range(2):
            if not self.store.leases.record_intent(lease, admitted=True).no_hold:
                break
            yield 0.0
            needs = self._needs(shard, upload=False)
            if not isinstance(self.store.admission.admit(lease, needs, self.limits), Admitted):
                yield 0.0
                return self._end(lease, Stage.UPLOADED, WAIT_SECONDS, message=False)
            yield 0.0
        else:
            return self._end(lease, Stage.UPLOADED, WAIT_SECONDS, message=False)
        yield 0.0
        place = shard.job, shard.index
        made = self.provider.create(shard.key, shard.model or "", self.tokens[place], self.at, self.seconds[place])
        yield CALL
        if isinstance(made, Batch):
            return self._settle(lease, made.id)
        self.store.shards.withdraw_call(shard, lease.token)
        yield 0.0
        after = WAIT_SECONDS if made.after is None else made.after
        self._end(lease, Stage.UPLOADED, after, message=False, full=made)

    def _settle(self, lease: ShardLease, batch: str) -> None:
        changes = {"status": "in_progress"}
        settled = self.store.shards.settle(lease.shard, batch, token=lease.token, after=600.0, changes=changes)
        if settled.news.republish:
            self.republish(lease.shard.job, lease.index, "always")

    def _poll(self, lease: ShardLease) -> Generator[float, None, None]:
        shard = lease.shard
        batch = self.provider.batches[shard.batch_id or ""]
        yield CALL
        if batch.status not in Status.FINAL:
            return self._end(lease, Stage.CREATED, 600.0, message=False, status=batch.status)
        if batch.status == "failed":
            full = self.provider.no_room(shard.model or "")
            again = {"try_": shard.try_ + 1, "spent": [*shard.spent, shard.batch_id], "status": None, "full": full}
            gone: dict[str, Any] = {"batch_id": None, "intent_at": None, "calls": None, "empty_at": None}
            return self._end(lease, Stage.UPLOADED, WAIT_SECONDS, message=False, **again, **gone)
        self._end(lease, Stage.ENDED, 0.0, status=batch.status)
        yield 0.0
        self._tell()

    def _download(self, lease: ShardLease) -> Generator[float, None, None]:
        yield 1.0
        try:
            self._end(lease, Stage.COLLECTED, 0.0, message=False, ok=1)
        finally:  # its answer may be lost
            place = lease.shard.job, lease.index
            key = self.connection.key(*place)
            if self.connection.client.hget(key, "stage") == Stage.COLLECTED:
                self.collected[place] = self.at
        yield 0.0
        self._tell()

    # -- the safety net ----------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self.after(SWEEP, self._sweep)
        if self.at < self.frozen_until:
            return
        for job, index in self.store.due.overdue(200):
            self.republish(job, index, "overdue")
        for account in self.store.admission.accounts():
            for job, index in self.store.admission.grant(account):
                self.republish(job, index, "overdue")

    def _look(self) -> None:
        self.after(LOOK, self._look)
        self._forget()
        if self.at < self.frozen_until:
            return
        for batch in self.provider.batches.values():
            if batch.status not in Status.FINAL or batch.id in self.done:
                continue
            if (place := self.store.shards.place_of_batch(batch.id)) is None:
                continue
            if place in self.collected:
                continue
            if (
                (shard := self.store.shards.at([place])[0]) is None
                or shard.stage != Stage.CREATED
                or shard.batch_id != batch.id
            ):
                if shard is not None and (batch.id in shard.spent or shard.stage in (Stage.ENDED, Stage.COLLECTED)):
                    self.done.add(batch.id)
                continue
            if self.store.shards.record_batch_status(shard, batch.id, {"status": batch.status}):
                self.republish(*place, "waiting")
        self._tell()

    def _rebuild(self) -> None:
        self.after(REBUILD, self._rebuild)
        for account in self.store.admission.accounts():
            self.store.admission.rebuild(account)

    # -- what must hold ----------------------------------------------------------------------------------------

    def held(self, account: str = "default") -> dict[str, tuple[int, int]]:
        """Of each resource that is held: (the sum that is kept, the sum of what is held)."""
        client, prefix, found = self.connection.client, self.connection.prefix, dict[str, tuple[int, int]]()
        names: Any = client.zrange(f"{prefix}rooms:{account}", 0, -1)
        for name in names:
            if name.partition(":")[0] in ("creations", "uploads"):
                continue
            total = 0
            for part in range(32):
                values: Any = client.hvals(f"{prefix}held:{account}:{name}:{part}")
                total += sum(int(value.partition("+")[0]) for value in values)
            found[name] = (int(client.hget(f"{prefix}room:{account}:{name}", "sum") or 0), total)
        return found

    def left(self) -> list[str]:
        """Keys of holds and lines that are there."""
        found: list[str] = []
        for family in ("held", "line", "lines", "shards", "raise", "served", "fair"):
            found += self.connection.client.scan_iter(f"{self.connection.prefix}{family}:*", count=1000)
        return sorted(name.removeprefix(self.connection.prefix) for name in found)

    def use(self, limit: int) -> float:
        """The part of the room that was used, from the first batch until nothing waited to be sent any more."""
        points, last = self.provider.used, max(t for t, n in self.provider.used if n > 0.9 * limit)
        area = sum(n * (min(t2, last) - t1) for (t1, n), (t2, _) in pairwise(points) if t1 < last)
        return area / (limit * (last - points[0][0]))
