"""What ``admission.py`` has seen: when batches ran, how room was used, and where the time between two batches goes."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from batchpipe.client.client import Client
from batchpipe.client.job import Job
from batchpipe.sandbox import Sandbox

#: Between two looks at the sandbox, in seconds.
LOOK = 0.05


@dataclass
class Life:
    """Of a batch, by the wall clock: made, let into the queue, ended; None: not seen."""

    made: float
    begun: float | None = None
    ended: float | None = None


@dataclass
class Watched:
    """The sandbox as it was seen: (time, batches in the queue, batches refused), and the life of each batch."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, sandbox: Sandbox) -> None:
        ended: set[str] = set()
        while not self.stop.wait(LOOK):
            now, running = time.time(), 0
            for batch in sandbox.batches.all():
                if batch.id in ended:
                    continue
                life = self.lives.setdefault(batch.id, Life(batch.created))
                if batch.tokens and life.begun is None:
                    life.begun = now
                if batch.is_final:
                    life.ended = now
                    ended.add(batch.id)
                else:
                    running += batch.tokens > 0
            self.samples.append((now, running, sandbox.quotas.refused))

    def used(self, room: int, until: float) -> float:
        """The part of the room that was in use, from the first batch until ``until``."""
        seen = [running for at, running, _ in self.samples if at <= until]
        first = next((place for place, running in enumerate(seen) if running), 0)
        return sum(seen[first:]) / max(room * len(seen[first:]), 1)

    def durations(self) -> list[float]:
        """How long each batch that ran was at the provider, in seconds: from its creation to its end."""
        return [life.ended - life.made for life in self.lives.values() if life.begun and life.ended]


def breakdown(client: Client, jobs: Sequence[Job], watched: Watched) -> str:
    """Where the time of a place in the queue goes, as medians and nine in ten."""
    spans: dict[str, list[float]] = defaultdict(list)
    freed, granted = [], []
    for job in jobs:
        made = _times(client.store.events.read(job.id))
        for shard in client.store.shards.of_job(job.record):
            at, life = made.get(shard.index, {}), watched.lives.get(shard.batch_id or "")
            if life is None or life.ended is None or "created" not in at or shard.admitted_at is None:
                continue
            if shard.over_at is not None:
                spans["end at the provider to its being noticed"].append(shard.over_at - life.ended)
                freed.append(shard.over_at)
            granted.append(shard.admitted_at)
            if at.get("uploaded", 0.0) - shard.admitted_at >= 0:
                spans["grant to uploaded"].append(at["uploaded"] - shard.admitted_at)
                spans["uploaded to created"].append(life.made - at["uploaded"])
            else:  # it was refused before, and has a file
                spans["grant to created, of refused ones"].append(life.made - shard.admitted_at)
            spans["created to in the queue"].append((life.begun or life.made) - life.made)
    freed.sort()
    # what comes after the first was freed was granted by that
    later = sorted(at for at in granted if freed and at >= freed[0])
    spans["room freed to granted"] = [max(to - since, 0.0) for since, to in zip(freed, later, strict=False)]
    return "\n".join(f"  {name}: {_in_words(found)}" for name, found in spans.items() if found)


def _times(events: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """When each shard was last uploaded and created."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for event in events:
        if event["event"] in ("uploaded", "created") and "shard" in event:
            found[event["shard"]][event["event"]] = event["at"]
    return found


def _in_words(found: list[float]) -> str:
    found.sort()
    return f"{statistics.median(found):.2f} s, 9 in 10 {found[int(0.9 * (len(found) - 1))]:.2f} s ({len(found)})"
