"""A backlog: ended shards wait for a few workers that download, while the sweep looks on every few seconds."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import redis

from batchpipe.config.settings import Settings
from batchpipe.model.records import JOB, JobRecord, Move, ShardRecord, Stage, State
from batchpipe.pipeline.messages import Message
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.sweep import sweep
from batchpipe.store import ClaimDenied, Connection, JobLease, ShardLease, Store
from batchpipe.store.scripts import source

DOWNLOAD_SECONDS = 0.5
#: What a worker needs to find out that a message is void.
VOID_SECONDS = 0.005
SWEEP_SECONDS = 5.0
#: The margin is doubled up to here.
LONGEST_MARGIN = 1_800.0


class _Connection(Connection):
    """Past retries and pools: tens of thousands of scripts; and with the text it is given."""

    def __init__(
        self, client: redis.Redis, skew: Callable[[], float], lease: float, text: Callable[[str], str]
    ) -> None:
        super().__init__(client, prefix="{backlog}:", lease_seconds=lease, skew=skew)
        self._plain = client.connection_pool.get_connection()
        self._text = text
        self._shas: dict[str, str] = {}

    def run(self, name: str, keys: Any, *args: Any) -> list[Any]:
        if name not in self._shas:
            self._shas[name] = self._ask("SCRIPT", "LOAD", self._text(name))
        given = [*keys, self.clock_key, f"{self.skew():.6f}", *args]
        return cast(list[Any], self._ask("EVALSHA", self._shas[name], len(keys) + 1, *given))

    def _ask(self, *command: Any) -> Any:
        self._plain.send_command(*command)
        return self._plain.read_response()

    def close(self) -> None:
        self.client.connection_pool.release(self._plain)


@dataclass
class Drained:
    """How a backlog went."""

    seconds: float = 0.0  #: of the model, until the last shard was collected
    published: Counter[tuple[str, int]] = field(default_factory=Counter)
    waited: dict[tuple[str, int], float] = field(default_factory=dict)  #: until it was collected
    merges: int = 0  #: begun by the last shard of a job

    def promised(self, lease: float) -> int:
        """Publications that the doubled margin allows: each shard is overdue after 1, 3, 7, 15 ... leases."""
        return sum(1 + _overdue(seconds, lease) for seconds in self.waited.values())


def _overdue(seconds: float, lease: float) -> int:
    """How often a shard may have been overdue after waiting so long for its first claim."""
    doublings = math.ceil(math.log2(max(LONGEST_MARGIN / lease, 1.0)))
    fast = lease * (2**doublings - 1)
    if seconds < fast:
        return int(math.log2(seconds / lease + 1))
    return doublings + int((seconds - fast) / LONGEST_MARGIN)


class Backlog:
    """Some jobs whose shards have all ended, their messages in one queue, and workers that take them in order."""

    def __init__(
        self,
        client: redis.Redis,
        folder: Path,
        *,
        jobs: int,
        shards: int,
        workers: int,
        lease: float = 60.0,
        text: Callable[[str], str] = source,
    ) -> None:
        self.at = self.begun = time.time()
        self.connection = _Connection(client, lambda: self.at - time.time(), lease, text)
        self.store = Store(self.connection)
        self.queue: deque[Message] = deque()
        self.result = Drained()
        self._started = 0
        settings = Settings(_env_file=None, home=folder)
        self.runner = Runner(settings, self.store, cast(Any, None), self._publish)
        self.workers, self.shards = workers, jobs * shards
        for number in range(jobs):
            self._plan(f"job_{number}", shards)

    def close(self) -> None:
        keys = cast(list[str], self.store.connection.client.keys("{backlog}:*"))
        for start in range(0, len(keys), 5_000):
            self.store.connection.client.delete(*keys[start : start + 5_000])
        self.connection.close()

    def _plan(self, job_id: str, count: int) -> None:
        self.store.jobs.submit(JobRecord(id=job_id, epoch=1, output=job_id))
        lease = self.store.leases.claim_job(job_id, 1, [State.PENDING], deadline=60.0, enter=State.PREPARING)
        assert isinstance(lease, JobLease)
        shards = [ShardRecord(job=job_id, index=index, epoch=1, stage=Stage.ENDED, rows=1) for index in range(count)]
        self.store.leases.plan(lease, {"round": 1}, shards, [])
        for shard in shards:
            self._publish(Message(job_id, shard.index, 1, Stage.ENDED, [], "q"))

    def _publish(self, message: Message) -> None:
        if message.index == JOB:
            return  # only the sweep's: no merge is claimed here
        self.result.published[message.job, message.index] += 1
        self.queue.append(message)

    def drain(self, *, lose_all_at: float = math.inf, give_up: float = 12 * 3_600.0) -> Drained:
        """Until every shard is collected. ``lose_all_at``: after so many seconds no message is left in the queue."""
        free = [self.at] * self.workers
        downloads: list[tuple[float, int, ShardLease]] = []
        sweep_at, lost = self.at, False
        while len(self.result.waited) < self.shards and self.at - self.begun < give_up:
            next_worker = max(free[0], self.at) if free and self.queue else math.inf
            next_end = downloads[0][0] if downloads else math.inf
            self.at = min(next_worker, next_end, sweep_at)
            if not lost and self.at - self.begun >= lose_all_at:
                lost = True
                self.queue.clear()
            elif self.at == next_end:
                self._collected(heapq.heappop(downloads)[2])
                heapq.heappush(free, self.at)
            elif self.at == sweep_at:
                sweep(self.runner)
                sweep_at += SWEEP_SECONDS
            else:
                heapq.heappop(free)
                self._take(self.queue.popleft(), free, downloads)
        self.result.seconds = self.at - self.begun
        return self.result

    def _take(self, message: Message, free: list[float], downloads: list[tuple[float, int, ShardLease]]) -> None:
        claim = self.store.leases.claim_shard(message.job, message.index, message.epoch, [Stage.ENDED], deadline=600.0)
        if isinstance(claim, ClaimDenied):
            heapq.heappush(free, self.at + VOID_SECONDS)
        else:
            self._started += 1  # a tie-break: leases have no order
            heapq.heappush(downloads, (self.at + DOWNLOAD_SECONDS, self._started, claim))

    def _collected(self, lease: ShardLease) -> None:
        move = Move(stage=Stage.COLLECTED, changes={"ok": 1})
        _, merge = self.store.leases.advance(lease, move, tries="reset", merge_ids=[])
        self.result.merges += merge > 0
        self.result.waited[lease.job.id, lease.index] = self.at - self.begun
