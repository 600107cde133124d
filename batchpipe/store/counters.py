"""Numbers for people and monitoring: counts that processes add up, and what is counted in the records."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from batchpipe.model.records import Stage, State
from batchpipe.model.stats import OpenShards, Stats
from batchpipe.store.connection import Connection


class Counters:
    """Nothing here decides what happens to a job."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection

    def add(self, counts: Mapping[str, float]) -> None:
        """Add to the counts of all processes. A repeated call counts twice: these counts are only for people."""
        if not counts:
            return
        pipe = self._redis.pipeline()
        for field, amount in counts.items():
            pipe.hincrbyfloat(f"{self._redis.prefix}metrics", field, amount)
        self._redis.execute(pipe)

    def read(self) -> dict[str, float]:
        counts = dict[str, float]()
        for name, value in self._redis.call("hgetall", f"{self._redis.prefix}metrics").items():
            with suppress(ValueError):  # written by hand
                counts[name] = float(value)
        return counts

    def stats(self) -> Stats:
        """A few numbers about all jobs, at the cost of a few reads, however many there are."""
        clock = self._redis.clock()
        now = clock.now
        kept = f"{now - self._redis.ttl_seconds:.6f}"  # the lists still name jobs with expired records
        pipe = self._redis.pipeline()
        pipe.zcard(f"{self._redis.prefix}due")
        pipe.zcount(f"{self._redis.prefix}due", "-inf", f"{now:.6f}")
        pipe.zrange(f"{self._redis.prefix}due", 0, 0, withscores=True)
        pipe.get(f"{self._redis.prefix}swept")
        states = [state for state in State if state is not State.CANCELLING]
        for state in states:
            pipe.zcount(f"{self._redis.prefix}jobs:{state.value}", kept if state.ended else "-inf", "+inf")
        unfinished, overdue, first, swept, *jobs = self._redis.execute(pipe)
        return Stats(
            now=now,
            unfinished=unfinished,
            overdue=overdue,
            lag=max(now - first[0][1], 0.0) if first else 0.0,
            swept=float(swept) if swept else None,
            jobs={state.value: count for state, count in zip(states, jobs, strict=True)},
            ahead=clock.ahead,
        )

    def count_open_shards(self, *, chunk: int = 500, most: int = 100_000) -> OpenShards:
        """Count the unfinished shards by stage: within Redis, a chunk at a time, so that it delays nobody for long.

        About 1 ms a chunk. Work goes on between two chunks, so a few shards may be missed or counted twice.
        """
        stages: dict[str, int] = {stage.value: 0 for stage in Stage if stage is not Stage.COLLECTED}
        oldest, troubled = 0.0, 0
        for start in range(0, most, chunk):
            answer = self._redis.run(
                "count_open_shards", [f"{self._redis.prefix}due"], self._redis.prefix, start, start + chunk - 1
            )
            read, age, trouble = int(answer[0]), float(answer[1]), int(answer[2])
            oldest, troubled = max(oldest, age), troubled + trouble
            for name, count in zip(answer[3::2], answer[4::2], strict=True):
                if name in stages:
                    stages[name] += int(count)
            if read < chunk:
                break
        return OpenShards(stages, oldest, troubled)
