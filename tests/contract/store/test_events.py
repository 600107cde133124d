"""The event log of a job; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any, cast

from batchpipe.store import Store
from batchpipe.store.events import LOG_LENGTH


def test_the_log_is_read_in_order_and_from_an_id_on(store: Store) -> None:
    """Each event has an id, a time and its fields."""
    store.events.add("job_x", "one", shard=1)
    store.events.add("job_x", "two", text="é")
    first, second = store.events.read("job_x")
    assert (first["event"], first["shard"], second["event"], second["text"]) == ("one", 1, "two", "é")
    assert store.events.read("job_x", after=first["id"]) == [second]


def test_the_log_is_bounded(store: Store) -> None:
    """A job that has trouble for days does not fill Redis."""
    pipe = store.connection.client.pipeline(transaction=False)
    for _ in range(LOG_LENGTH + 500):
        pipe.xadd(f"{store.connection.prefix}log:job_x", {"event": "e", "data": "{}"})
    pipe.execute()
    store.events.add("job_x", "last")
    length = int(str(store.connection.client.xlen(f"{store.connection.prefix}log:job_x")))
    assert length <= LOG_LENGTH + 100  # Redis cuts whole nodes
    assert int(str(store.connection.client.ttl(f"{store.connection.prefix}log:job_x"))) > 0


def test_a_log_shows_its_newest_events(store: Store) -> None:
    """Its end is what a person looks for."""
    for number in range(12):
        store.events.add("job_x", "e", number=number)
    assert [event["number"] for event in store.events.read("job_x", limit=5)] == [7, 8, 9, 10, 11]


def test_an_event_is_bounded_whatever_is_in_it(store: Store) -> None:
    store.events.add(
        "job_x", "e" * 9_999, message="x" * 10_000_000, many=["y" * 5_000] * 5_000, deep={"a": {"b": {"c": [[1]]}}}
    )
    [entry] = cast(Any, store.connection.client.xrange(f"{store.connection.prefix}log:job_x"))
    assert len(str(entry)) < 250_000
    assert len(store.events.read("job_x")[0]["message"]) == 1_000
