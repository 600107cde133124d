"""Counters for monitoring: first in this process, then added up in one hash of Redis (``Counters.add``).

Counts are not exact. Those that a killed process had not written yet are lost, a repeated write may count twice, and
nothing may ever be decided by them. Their labels are few and known: no ids of jobs, shards or batches.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson

from batchpipe.errors import (
    BATCH_LIMIT,
    TOKEN_LIMIT,
    Paused,
    SettingsError,
    StorageTrouble,
    TransientError,
    Unavailable,
)
from batchpipe.model.records import ENDED, Stage, State
from batchpipe.model.steps import STEPS

#: The value of a label for all values not listed below, so that texts of others cannot create endless series.
OTHER = "other"
#: The label with values from the operator: names of accounts.
ACCOUNT = "account"
#: How many accounts are counted separately in one process; more than anybody has.
MOST_ACCOUNTS = 200

REASONS = {
    "poll": "the batch has not ended",
    "create": "a create call was unanswered, too late, or its file not found yet",
    "files": "the result files of an ended batch are not whole yet",
    "paused": "the account is paused (401, 402, 403, no quota)",
    "rate_limit": "the provider answered 429",
    "token_limit": "the provider's queue for the account is full",
    "provider": "the provider did not answer, or answered 5xx or nonsense",
    "storage": "disk or remote storage",
    "settings": "settings lack something on this host",
    "broker": "the broker took no message",
    "redis": "Redis did not answer",
    "lease": "somebody else works on it, or did until it was killed",
    "cancelling": "a transfer was broken off for a cancel",
    "hold": "a batch of the job was cancelled elsewhere, and a person has to decide",
    "receivers": "a site's receivers of a job's end raised, or are not loaded in this worker",
    "failure": "something nobody has foreseen",
}
ROUTES = (
    *("POST /files", "GET /files", "GET /files/{id}", "DELETE /files/{id}", "GET /files/{id}/content"),
    *("POST /batches", "GET /batches", "GET /batches/{id}", "POST /batches/{id}/cancel"),
)
#: The status for no answer: refused, timed out, broken off.
NO_ANSWER = "error"

#: label -> its values. ``account`` is not here.
VALUES: dict[str, tuple[str, ...]] = {
    "link": tuple(STEPS),
    "ending": ("continue", "retry", "done", "error"),
    "reason": tuple(REASONS),
    "outcome": ("ok", "failed", "missing"),
    "kind": (
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "cache_write_tokens",
        "input_image_tokens",
        "output_image_tokens",
    ),
    "state": tuple(state.value for state in State if state in ENDED),
    "stage": (
        *(state.value for state in (State.PENDING, State.PREPARING, State.FINALIZING)),
        *(stage.value for stage in Stage if stage is not Stage.COLLECTED),
    ),
    "route": ROUTES,
    "effect": ("woken", "known", "early"),
    "status": (*(str(status.value) for status in HTTPStatus), NO_ANSWER),
}


@dataclass(frozen=True)
class Metric:
    """A counter, or with ``buckets`` (upper bounds in seconds) a histogram. Names lack the prefix and ``_total``."""

    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_HOURS = 3_600.0
METRICS: dict[str, Metric] = {
    "jobs_ended": Metric("Jobs that ended, by end state.", (ACCOUNT, "state")),
    "rows": Metric("Rows of ended jobs, by what became of them in the end.", (ACCOUNT, "outcome")),
    "rows_collected": Metric("Rows of downloaded batches, of all rounds, by outcome.", (ACCOUNT, "outcome")),
    "rows_invalid": Metric("Rows of ended jobs with an answer that is not what was asked for.", (ACCOUNT,)),
    "rows_resent": Metric("Rows that were sent again in a further round."),
    "rounds": Metric("Further rounds: rows of a job were sent again."),
    "batches_resent": Metric("Batches made again because the provider's queue was full or the quota used up."),
    "tokens": Metric("Tokens that the provider counted, by kind.", (ACCOUNT, "kind")),
    "turns": Metric("Turns of tasks, by link of the chain and how they ended.", ("link", "ending")),
    "retries": Metric("Turns that came back by countdown, by link; most are polls that wait.", ("link",)),
    "waits": Metric("Pauses until a next turn, by reason.", ("reason",)),
    "wait_seconds": Metric("Seconds of these pauses, by reason.", ("reason",)),
    "account_pauses": Metric("How often an account was paused.", (ACCOUNT,)),
    "sweeps": Metric("Passes of the sweep."),
    "swept": Metric("Records that a sweep found overdue and published again."),
    "left_waiting": Metric("Overdue records that a sweep left: their messages wait in a queue that nobody takes from."),
    "webhooks": Metric(
        "Verified webhooks about batches, by what they changed; counted by `record_news.lua`.", ("effect",)
    ),
    "notifications_dropped": Metric(
        "Notifications that were not recorded, as too many wait; counted by `add_notification.lua`."
    ),
    "looks": Metric("Looks at the list of an account's batches, each for all shards.", (ACCOUNT,)),
    "orphans_cancelled": Metric("Batches that a sweep cancelled because their shard has another."),
    "provider_calls": Metric("Calls to the provider, by route and HTTP status.", (ACCOUNT, "route", "status")),
    "provider_call_seconds": Metric(
        "Seconds until the provider's answer began, by route.", ("route",), (0.1, 0.3, 1, 3, 10, 30, 100, 300, 600)
    ),
    "stage_seconds": Metric(
        "Seconds that shards (and jobs: pending, preparing, finalizing) spent in a stage that they have left.",
        ("stage",),
        (1, 5, 30, 120, 600, 1_800, _HOURS, 3 * _HOURS, 6 * _HOURS, 12 * _HOURS, 24 * _HOURS, 26 * _HOURS),
    ),
}
#: The bucket above all bounds.
INFINITE = "+Inf"


class Counters:
    """Counts of this process since they were last taken. Safe between threads; a forked child begins with none.

    ``every``: how many seconds they may wait to be taken, with those of further turns.
    """

    def __init__(self, every: float = 0.0) -> None:
        self._every = every
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], float] = {}
        self._accounts: set[str] = set()
        self._timer: threading.Timer | None = None

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count. Raises KeyError for a metric or label that is not in the table above."""
        if self._pid != os.getpid():
            self._begin()  # the parent reports its own counts; its lock may have been held at the fork
        metric = METRICS[name]
        with self._lock:
            values = [self._value(label, labels[label]) for label in metric.labels]
            if metric.buckets:
                place = bisect_left(metric.buckets, amount)
                bound = str(float(metric.buckets[place])) if place < len(metric.buckets) else INFINITE
                self._plus((f"{name}_bucket", *values, bound), 1.0)
                name = f"{name}_sum"
            self._plus((name, *values), amount)

    def _plus(self, key: tuple[str, ...], amount: float) -> None:
        self._counts[key] = self._counts.get(key, 0.0) + amount

    def _value(self, label: str, value: str) -> str:
        if label != ACCOUNT:
            return value if value in VALUES[label] else OTHER
        if len(self._accounts) < MOST_ACCOUNTS:
            self._accounts.add(value)
        return value if value in self._accounts else OTHER

    def take(self) -> dict[str, float]:
        """The counts since the last call, as fields of the hash; the caller must now report them."""
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            taken, self._counts = self._counts, {}
        return {field_of(*key): amount for key, amount in taken.items() if amount}

    def hand_over(self, flush: Callable[[], None]) -> None:
        """Have ``flush`` called: now, or within ``every`` seconds in a thread of its own."""
        if not self._every:
            flush()
            return
        if self._pid != os.getpid():
            self._begin()

        def end() -> None:
            self._timer = None
            flush()

        with self._lock:
            if self._timer is not None:
                return
            self._timer = threading.Timer(self._every, end)
            self._timer.daemon = True
        self._timer.start()

    def put_back(self, taken: Mapping[str, float]) -> None:
        """Add counts again that could not be reported, for the next time."""
        with self._lock:
            for field, amount in taken.items():
                self._plus(key_of(field), amount)

    # -- what happens in turns -------------------------------------------------------------------------------------

    def turn(self, link: str, ending: str) -> None:
        self.add("turns", link=link, ending=ending)
        if ending in ("retry", "error"):
            self.add("retries", link=link)

    def wait(self, reason: str, seconds: float) -> None:
        self.add("waits", reason=reason)
        self.add("wait_seconds", max(seconds, 0.0), reason=reason)

    def rows(self, name: str, account: str, counts: Mapping[str, object]) -> None:
        """``counts`` may hold ok, failed and missing."""
        for outcome in VALUES["outcome"]:
            if isinstance(number := counts.get(outcome), int):
                self.add(name, number, account=account, outcome=outcome)

    def tokens(self, account: str, usage: Mapping[str, int]) -> None:
        for kind, number in usage.items():
            self.add("tokens", number, account=account, kind=kind)

    def call(self, account: str, route: str, status: str, seconds: float) -> None:
        """A call to the provider; ``status`` is its HTTP status, or ``error``."""
        self.add("provider_calls", account=account, route=route, status=status)
        self.add("provider_call_seconds", seconds, route=route)


def field_of(name: str, *values: str) -> str:
    """The field of the hash that holds a count."""
    return orjson.dumps([name, *values]).decode()


def key_of(field: str) -> tuple[str, ...]:
    """A count's name and the values of its labels. Raises ValueError for other fields."""
    key = orjson.loads(field)
    if not isinstance(key, list) or not key or not all(isinstance(part, str) for part in key):
        raise ValueError(f"{field!r} is no count")
    return tuple(key)


def reason_of(error: BaseException) -> str:
    """The reason why a turn with this error waits."""
    match error:
        case Paused():
            return "paused"
        case StorageTrouble() | OSError():
            return "storage"
        case SettingsError():
            return "settings"
        case Unavailable():
            if error.code in (TOKEN_LIMIT, BATCH_LIMIT):
                return "token_limit"
            return "rate_limit" if error.status == 429 else "provider"
        case TransientError():
            words = {
                "cancelling": "cancelling",
                "broker_unavailable": "broker",
                "not_delivered": "receivers",
                "on_hold": "hold",
            }
            return words.get(error.code, "failure")
    return "failure"
