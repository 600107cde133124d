"""What ``waiting.py`` has found: its figures in words, as charts, and held against their bounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from _plot import Points


@dataclass
class Waited:
    """What one way of waiting took in its steady state; ages and delays in seconds."""

    cpu: float  #: CPU seconds a minute, all our processes
    redis_cpu: float  #: the same of Redis
    lists: float  #: pages of the list that were read, a minute
    looks: float  #: of these the first ones of the list, a minute: each begins a look
    retrieves: float  #: batches that were read one by one, a minute
    messages: float  #: Celery messages for each shard and hour
    bytes: float  #: of Redis for each shard, its message included
    ages: list[float]  #: how long until each changed status was known
    ends: list[float]  #: from each end to the start of its download
    ended: int  #: batches that ended


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)] if values else float("nan")


def show(name: str, count: int, waited: Waited) -> None:
    noticed = f"{len(waited.ends)} of {waited.ended} ends noticed"
    if waited.ends:
        noticed += f", p50 {statistics.median(waited.ends):.1f} s, p99 {quantile(waited.ends, 0.99):.1f} s"
    age = f"; status known after {max(waited.ages):.1f} s at most" if waited.ages else ""
    print(
        f"{name}, N = {count}: {waited.cpu:.1f} CPU-s a minute (Redis {waited.redis_cpu:.1f}), "
        f"{waited.lists:.1f} pages in {waited.looks:.1f} looks and {waited.retrieves:.1f} single reads a minute, "
        f"{waited.messages:.1f} messages for each shard and hour, {waited.bytes / 1024:.1f} KB of Redis for each shard"
        f"{age}; {noticed}",
        flush=True,
    )


def charts(found: dict[str, dict[int, Waited]]) -> dict[str, dict[str, Points]]:
    """What is drawn over the number in flight."""

    def lines(value: Callable[[Waited], float]) -> dict[str, Points]:
        return {name: [(count, value(one)) for count, one in runs.items()] for name, runs in found.items()}

    return {
        "CPU seconds a minute": lines(lambda one: one.cpu),
        "calls to the provider a minute": lines(lambda one: one.lists + one.retrieves),
        "KB of Redis for each shard": lines(lambda one: one.bytes / 1024),
        "messages for each shard and hour": lines(lambda one: one.messages),
        "seconds until a status is known": lines(lambda one: max(one.ages, default=0)),
    }


def verdicts(count: int, mine: Waited, peer: Waited | None) -> list[str]:
    """The bounds that are missed."""
    missed = []
    if max(mine.ages, default=0) > 30:
        missed.append("a status is older than 30 s")
    if len(mine.ends) < mine.ended or quantile(mine.ends, 0.99) > 30:
        missed.append("ends are noticed too late")
    if mine.looks and mine.lists > 1.2 * max(count / 100, 1) * mine.looks:
        missed.append(f"{mine.lists / mine.looks:.1f} pages a look")
    if mine.looks and mine.retrieves:
        missed.append("batches are read one by one")
    if mine.bytes > 3 * 1024:
        missed.append("more than 3 KB of Redis for each shard")
    if count >= 10_000 and mine.cpu > 6:
        missed.append("more than 6 CPU-s a minute")
    if peer is not None and count == 1_000 and mine.cpu > peer.cpu / 20:
        missed.append("more than 1/20 of the CPU of a task for each batch")
    return missed
