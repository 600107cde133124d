"""Counts of a process, and how those of many processes add up in Redis."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.errors import (
    Gone,
    LeaseLost,
    OnHold,
    Paused,
    SettingsError,
    StorageTrouble,
    StoreUnavailable,
    TransientError,
    Unavailable,
)
from batchpipe.provider import Api
from batchpipe.sandbox import Sandbox
from batchpipe.store import Store
from batchpipe.telemetry.counters import METRICS, MOST_ACCOUNTS, OTHER, Counters, field_of, key_of, reason_of


def taken(counters: Counters) -> dict[tuple[str, ...], float]:
    return {key_of(field): number for field, number in counters.take().items()}


def test_what_was_taken_is_not_taken_again() -> None:
    """Each count is handed over once."""
    counters = Counters()
    counters.turn("poll", "retry")
    counters.turn("poll", "retry")
    assert taken(counters) == {("turns", "poll", "retry"): 2, ("retries", "poll"): 2}
    assert taken(counters) == {}


def test_what_could_not_be_handed_over_waits_and_is_added_to() -> None:
    counters = Counters()
    counters.add("sweeps")
    counters.put_back(counters.take())
    counters.add("sweeps")
    assert taken(counters) == {("sweeps",): 2}


def test_a_word_that_nobody_knows_becomes_other() -> None:
    """A provider that invents statuses, or an id where none belongs, makes no series without end."""
    counters = Counters()
    for number in range(50):
        counters.call("default", f"GET /batches/batch_{number}", str(700 + number), 0.1)
        counters.tokens("default", {f"kind{number}": 1})
    labels = {value for key in taken(counters) for value in key[1:]}
    assert labels <= {"default", OTHER, "0.1"}


def test_accounts_are_told_apart_up_to_a_bound() -> None:
    counters = Counters()
    for number in range(3 * MOST_ACCOUNTS):
        counters.add("account_pauses", account=f"a{number}")
    counts = taken(counters)
    assert len(counts) == MOST_ACCOUNTS + 1
    assert counts["account_pauses", OTHER] == 2 * MOST_ACCOUNTS


def test_seconds_fall_into_the_first_bucket_that_holds_them() -> None:
    counters = Counters()
    for seconds in (0.5, 1.0, 1.1, 10**9):
        counters.add("stage_seconds", seconds, stage="created")
    buckets = {key[2]: number for key, number in taken(counters).items() if key[0] == "stage_seconds_bucket"}
    assert buckets == {"1.0": 2, "5.0": 1, "+Inf": 1}


def test_a_metric_that_is_not_in_the_table_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Counters().add("rows_lost")
    with pytest.raises(KeyError):
        Counters().add("turns", link="poll")


def test_threads_lose_nothing() -> None:
    counters = Counters()

    def work(_: int) -> None:
        for _ in range(500):
            counters.wait("poll", 1.0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert taken(counters)["waits", "poll"] == 4_000


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_words_and_known_labels(name: str) -> None:
    assert METRICS[name].help.endswith(".")
    assert name.replace("_", "").isalpha()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OnHold("a batch was cancelled elsewhere"), "hold"),
        (Paused("no", code="invalid_api_key"), "paused"),
        (Unavailable("slow down", status=429), "rate_limit"),
        (Unavailable("queue is full", code="token_limit_exceeded", status=429), "token_limit"),
        (Unavailable("too many batches", code="batch_limit_exceeded", status=400), "token_limit"),
        (Unavailable("oops", status=503), "provider"),
        (StorageTrouble("disk full"), "storage"),
        (OSError(28, "no space"), "storage"),
        (SettingsError("no key"), "settings"),
        (TransientError("gone on", code="broker_unavailable"), "broker"),
        (TransientError("stop", code="cancelling"), "cancelling"),
        (TransientError("nobody heard", code="not_delivered"), "receivers"),
        (Gone("unknown"), "failure"),
        (RuntimeError("bug"), "failure"),
        (LeaseLost(), "failure"),
    ],
)
def test_why_a_turn_waits_is_one_of_a_few_words(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


# -- in Redis ------------------------------------------------------------------------------------------------------

FORKING = """
import os, sys
from batchpipe.telemetry.counters import Counters
from batchpipe.store import Store
store, counters = Store.connect(sys.argv[1], prefix=sys.argv[2]), Counters()
counters.add("rows_resent", 3)
counters._lock.acquire()  # held at the fork, as by another thread
child = os.fork()
if child:
    counters._lock.release()
    assert os.waitpid(child, 0)[1] == 0
counters.add("rows_resent", 40 if child else 500)
store.counters.add(counters.take())
if not child:
    os._exit(0)
"""


def test_counts_of_many_processes_add_up(redis_url: str, prefix: str) -> None:
    """Forked children begin with nothing: what their parent counted before is the parent's to hand over."""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", FORKING, redis_url, prefix], check=True, timeout=30)
    assert Store.connect(redis_url, prefix=prefix).counters.read() == {field_of("rows_resent"): 2 * 543}


def test_a_store_adds_and_nothing_is_no_call(store: Store) -> None:
    store.counters.add({field_of("sweeps"): 1.5})
    store.counters.add({field_of("sweeps"): 1.0})
    store.counters.add({})
    assert store.counters.read() == {field_of("sweeps"): 2.5}


def test_a_redis_that_is_away_says_so() -> None:
    with pytest.raises(StoreUnavailable):
        Store.connect("redis://127.0.0.1:1/0").counters.add({field_of("sweeps"): 1})


# -- calls to the provider -----------------------------------------------------------------------------------------


def seen_calls(base_url: str, do: Callable[[Api], object], **options: float) -> list[tuple[str, str, str]]:
    calls: list[tuple[str, str, str]] = []
    account = Account(api_key=SecretStr("sk-test"), base_url=base_url)
    api = Api(account, count=lambda *call: calls.append(call[:3]), name="mine", **options)
    with pytest.raises(TransientError) if "127.0.0.1:1/" in base_url else pytest.MonkeyPatch.context():
        do(api)
    api.close()
    return calls


def test_each_call_is_counted_by_route_and_status(sandbox: Sandbox) -> None:
    """Ids are left out of the route; an answer that is an error is a call, too."""

    def work(api: Api) -> None:
        file = api.upload(io.BytesIO(b"{}\n"), "f.jsonl", lambda: None)
        assert api.file_bytes(file) == 3
        api.download(file, io.BytesIO(), lambda: None)
        api.delete_file(file)
        list(api.iter_batches(0))
        with pytest.raises(Gone):
            api.retrieve("batch_unknown")

    assert seen_calls(sandbox.base_url, work) == [
        ("mine", "POST /files", "200"),
        ("mine", "GET /files/{id}", "200"),
        ("mine", "GET /files/{id}/content", "200"),
        ("mine", "DELETE /files/{id}", "200"),
        ("mine", "GET /batches", "200"),
        ("mine", "GET /batches/{id}", "404"),
    ]


def test_a_call_without_an_answer_is_an_error() -> None:
    calls = seen_calls("http://127.0.0.1:1/v1", lambda api: api.cancel_batch("batch_x"), control_seconds=1.0)
    assert calls == [("mine", "POST /batches/{id}/cancel", "error")]
