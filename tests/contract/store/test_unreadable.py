"""Records that cannot be read stop only what needs them; on fakeredis and on a real Redis."""

from __future__ import annotations

from typing import Any, cast

import pytest

from batchpipe.errors import RecordUnreadable
from batchpipe.model.records import State
from batchpipe.store import Store
from tests.contract.store.protocol import (
    new_job,
    planned,
)

BAD = ({"open": "many"}, {"stage": "archived"}, {"tags": "{"}, None)


def spoil(store: Store, key: str, how: dict[str, str] | None) -> None:
    if how is None:
        store.connection.client.delete(key)
        store.connection.client.set(key, "no hash")
    else:
        store.connection.client.hset(key, mapping=cast(Any, how))


@pytest.mark.parametrize("how", BAD)
def test_a_job_that_cannot_be_read_is_listed_as_such_and_ends_no_list(
    store: Store, how: dict[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = new_job(), new_job()
    for job in (good, bad):
        store.jobs.submit(job)
    spoil(store, f"{store.connection.prefix}job:{bad.id}", how)
    for _ in range(2):
        listed = {job.id: job.error and job.error.code for job in store.jobs.newest()}
        assert listed == {good.id: None, bad.id: "record_unreadable"}
        assert bad.id in {job.id for job in store.jobs.newest(state=State.PENDING)} or how == {"stage": "archived"}
    assert len([record for record in caplog.records if bad.id in record.message]) == 1


@pytest.mark.parametrize("how", [{"rows": "many"}, {"stage": "archived"}, {"counts": "{"}, None])
def test_a_shard_that_cannot_be_read_is_shown_and_stops_only_its_own_steps(
    store: Store, how: dict[str, str] | None
) -> None:
    """A merge without it would lose rows."""
    found = store.jobs.get(planned(store, 3))
    spoil(store, f"{store.connection.prefix}shard:{found.id}:1", how)
    shown = list(store.shards.of_job(found, bad="show"))
    assert [(shard.index, shard.trouble and shard.trouble.code) for shard in shown] == [
        (0, None),
        (1, "record_unreadable"),
        (2, None),
    ]
    with pytest.raises(RecordUnreadable):
        list(store.shards.of_job(found))
    assert [shard is not None for shard in store.shards.at([(found.id, index) for index in range(3)])] == [1, 0, 1]
    assert store.counters.count_open_shards().stages["planned"] >= 2


def test_a_member_of_the_due_set_that_names_nothing_is_taken_out(store: Store) -> None:
    store.connection.client.zadd(f"{store.connection.prefix}due", {"rubbish": 1, "a/b": 2, "job_x/3": 3})
    assert store.due.overdue() == [("job_x", 3)]
    assert store.connection.client.zrange(f"{store.connection.prefix}due", 0, -1) == ["job_x/3"]
