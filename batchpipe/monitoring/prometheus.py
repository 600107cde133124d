"""Metrics for Prometheus: ``batchpipe metrics``, or mounted into a site's own server with ``wsgi_app()``.

A scrape reads a few numbers and one hash of counts from Redis; the shards in flight are counted within Redis, and the
result is kept for some seconds. While Redis is away a scrape gets only ``batchpipe_up 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any
from wsgiref.types import WSGIApplication

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest, make_wsgi_app
from prometheus_client.registry import Collector

from batchpipe.client.client import Client, default_client
from batchpipe.client.measures import Measures
from batchpipe.config.site import current_site
from batchpipe.errors import StoreUnavailable
from batchpipe.telemetry.counters import ACCOUNT, INFINITE, METRICS, NO_ANSWER, VALUES, key_of
from batchpipe.telemetry.counters import Metric as Counted

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

PREFIX = "batchpipe_"

UP = "Whether Redis, and so the rest of these numbers, could be read."
#: name -> help, labels. In the order of the output.
GAUGES: dict[str, tuple[str, str]] = {
    "jobs": ("Jobs, by state; those that ended as long as their records are kept.", "state"),
    "shards": ("Unfinished shards, by stage.", "stage"),
    "shards_in_trouble": ("Unfinished shards that make no progress just now; `batchpipe status` says why.", ""),
    "oldest_shard_seconds": ("Age of the oldest unfinished shard, since it was planned.", ""),
    "unfinished_records": ("Shards and jobs with work left to do.", ""),
    "overdue_records": ("How many of these have a lost message or a late worker.", ""),
    "sweep_lag_seconds": ("How long the most overdue record is overdue.", ""),
    "sweep_age_seconds": ("Seconds since the last complete sweep; +Inf: there was none.", ""),
    "clock_ahead_seconds": (
        "How far our time is ahead of Redis' clock, which was set back; 0: it was not.",
        "",
    ),
    "account_paused_seconds": ("How much longer an account is paused; 0: it is in use.", ACCOUNT),
    "late_batches": (
        "Batches in flight far outside what their model usually takes; `batchpipe status` says how.",
        ACCOUNT,
    ),
    "turnaround_seconds": (
        "From the making of a batch to its end in the last days, by quantile; models with five batches at least.",
        f"{ACCOUNT} model quantile",
    ),
    "provider_queue_seconds": (
        "The same until a batch began to run, as the provider says.",
        f"{ACCOUNT} model quantile",
    ),
    "turnaround_batches": ("Batches that ended in the last days, by model.", f"{ACCOUNT} model"),
}


class JobCollector(Collector):
    """Asks for the numbers at each scrape: ``measure`` reads them, or raises StoreUnavailable."""

    def __init__(self, measure: Callable[[], Measures]) -> None:
        self._measure = measure

    def describe(self) -> list[Metric]:
        """Only the names, for requests of some of them: nothing is read when the collector is registered."""
        counted = (
            (HistogramMetricFamily if metric.buckets else CounterMetricFamily)(PREFIX + name, metric.help)
            for name, metric in METRICS.items()
        )
        gauges = (GaugeMetricFamily(PREFIX + name, words) for name, (words, _) in GAUGES.items())
        return [GaugeMetricFamily(f"{PREFIX}up", UP), *gauges, *counted]

    def collect(self) -> Iterator[Metric]:
        try:
            found = self._measure()
        except StoreUnavailable:
            yield GaugeMetricFamily(f"{PREFIX}up", UP, 0)
            return
        yield GaugeMetricFamily(f"{PREFIX}up", UP, 1)
        values = _values(found)
        for name, (words, labels) in GAUGES.items():
            yield _gauge(name, words, labels, values[name])
        yield from _counters(found.counts, list(found.paused_seconds))


#: The value of a gauge; by its label, or labels, if it has any.
Values = float | Mapping[str, float] | Mapping[tuple[str, ...], float]


def _values(found: Measures) -> dict[str, Values]:
    stats, shards = found.stats, found.open_shards
    return {
        "jobs": dict(stats.jobs),
        "shards": dict(shards.stages),
        "shards_in_trouble": shards.troubled,
        "oldest_shard_seconds": shards.oldest,
        "unfinished_records": stats.unfinished,
        "overdue_records": stats.overdue,
        "sweep_lag_seconds": stats.lag,
        "sweep_age_seconds": max(stats.now - stats.swept, 0.0) if stats.swept is not None else math.inf,
        "clock_ahead_seconds": stats.ahead,
        "account_paused_seconds": found.paused_seconds,
        "late_batches": found.late,
        "turnaround_seconds": found.turnarounds.took,
        "provider_queue_seconds": found.turnarounds.queued,
        "turnaround_batches": found.turnarounds.batches,
    }


def _gauge(name: str, words: str, labels: str, value: Values) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, words, labels=labels.split())
    if not isinstance(value, Mapping):
        family.add_metric([], value)
        return family
    for key, number in value.items():
        family.add_metric([key] if isinstance(key, str) else list(key), number)
    return family


@dataclass(frozen=True)
class _Counts:
    """The hash of counts: (name, values of the labels...) -> number."""

    numbers: dict[tuple[str, ...], float]

    @classmethod
    def of(cls, fields: dict[str, float]) -> _Counts:
        numbers = {}
        for field, number in fields.items():
            try:
                numbers[key_of(field)] = number
            except ValueError:  # written by a newer version
                continue
        return cls(numbers)

    def of_name(self, name: str, labels: int) -> dict[tuple[str, ...], float]:
        return {key[1:]: n for key, n in self.numbers.items() if key[0] == name and len(key) == labels + 1}


def _counters(fields: dict[str, float], accounts: list[str]) -> Iterator[Metric]:
    counts = _Counts.of(fields)
    for name, metric in METRICS.items():
        series = dict.fromkeys(_known_series(metric, accounts), 0.0)
        if metric.buckets:
            yield _histogram(name, metric, counts, series)
            continue
        family = CounterMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
        for values, number in sorted({**series, **counts.of_name(name, len(metric.labels))}.items()):
            family.add_metric(values, number)
        yield family


def _known_series(metric: Counted, accounts: list[str]) -> Iterator[tuple[str, ...]]:
    """Series that exist from the beginning, because rate() and increase() miss the first count of a new series.
    Not for every status: there are too many values."""
    values = {**VALUES, "status": ("200", NO_ANSWER), ACCOUNT: tuple(accounts)}
    return product(*(values[label] for label in metric.labels))


def _histogram(name: str, metric: Counted, counts: _Counts, series: dict[tuple[str, ...], float]) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
    found = counts.of_name(f"{name}_bucket", len(metric.labels) + 1)
    sums = {**series, **counts.of_name(f"{name}_sum", len(metric.labels))}
    for values, total in sorted(sums.items()):
        buckets, running = [], 0.0
        for bound in (*(str(float(bound)) for bound in metric.buckets), INFINITE):
            running += found.get((*values, bound), 0.0)
            buckets.append((bound, running))
        family.add_metric(values, buckets, total)
    return family


# -- ways to it --------------------------------------------------------------------------------------------------------


def collector(client: Client | None = None) -> JobCollector:
    """For a site with a registry of its own: ``prometheus_client.REGISTRY.register(collector())``.

    By default it uses this process's settings, which are read at the first scrape.
    """
    return JobCollector(lambda: (client or default_client()).measure())


def _registry(client: Client | None) -> CollectorRegistry:
    """The site's registry of these metrics alone; always the same one, because it keeps what is costly to count."""
    return current_site().keep(_make_registry, client)


def _make_registry(client: Client | None) -> CollectorRegistry:
    made = CollectorRegistry(auto_describe=False)
    made.register(collector(client))
    return made


def wsgi_app(client: Client | None = None) -> WSGIApplication:
    """A WSGI app that returns the metrics, to be mounted where only your Prometheus can reach it."""
    app: WSGIApplication = make_wsgi_app(_registry(client))
    return app


def render(client: Client | None = None) -> tuple[bytes, str]:
    """The metrics as text, and its content type: for a view of any framework."""
    return generate_latest(_registry(client)), CONTENT_TYPE_LATEST


def serve(client: Client, host: str, port: int) -> tuple[WSGIServer, Any]:
    """Answer scrapes in a thread of this process. Raises OSError if the port is taken."""
    return start_http_server(port, host, _registry(client))
