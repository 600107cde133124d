"""Queues that nobody works on do not fill: nothing is published again while the old message can only be waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.model.records import JOB, State
from batchpipe.pipeline import overdue
from batchpipe.pipeline.messages import Message
from batchpipe.tasks.app import make_app
from batchpipe.tasks.inspection import waiting_in
from batchpipe.tasks.publishing import forget_queue, publish
from batchpipe.testing import Pump

Rows = Callable[..., list[dict[str, object]]]
DAY = 86_400


@pytest.fixture
def pump(tmp_path: Path) -> Pump:
    """A row a shard, and a broker that tells how many messages wait in a queue."""
    made = Pump(tmp_path, max_rows=1)
    made.waiting_in = lambda queue: sum(it.message.queue == queue and it.at <= made.at for it in made.waiting)
    return made


def planned(pump: Pump, rows: list[dict[str, object]]) -> str:
    """A job whose shards' chains wait, and nobody takes them."""
    job_id = pump.submit(rows, queue="deep")
    while pump.job(job_id).stage != State.RUNNING:
        assert pump.step() is not None
    return job_id


def let_pass(pump: Pump, seconds: float, pace: float = 300.0) -> None:
    """Time in which sweeps run, and no worker of the queue."""
    ends = pump.at + seconds
    while pump.at < ends:
        pump.advance(pace)
        pump.sweep()


def test_a_queue_without_a_worker_keeps_one_message_a_shard_for_a_month(pump: Pump, chat_rows: Rows) -> None:
    """It was one more every half hour. The worker that comes then takes the old messages: they are not void."""
    job_id = planned(pump, chat_rows(3))
    let_pass(pump, 30 * DAY, pace=7_200.0)
    assert len(pump.waiting) == 3

    pump.run_until_idle(sweeping=False)
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert sum(pump.api.billed.values()) == 3


def test_a_job_that_no_worker_has_begun_keeps_its_one_message(pump: Pump, chat_rows: Rows) -> None:
    job_id = pump.submit(chat_rows(2), queue="misspelt")
    let_pass(pump, 2 * DAY)
    assert len(pump.waiting) == 1
    pump.run_until_idle(sweeping=False)
    assert pump.job(job_id).stage == State.SUCCEEDED


def test_a_queue_that_was_emptied_gets_its_messages_again(pump: Pump, chat_rows: Rows) -> None:
    """By `celery purge`, or with the broker's Redis: within minutes, with no worker needed for it."""
    planned(pump, chat_rows(3))
    let_pass(pump, DAY)
    pump.waiting.clear()
    let_pass(pump, 900)
    assert len(pump.waiting) == 3


def test_what_is_lost_alone_comes_back_once_something_is_taken_from_the_queue(pump: Pump, chat_rows: Rows) -> None:
    job_id = planned(pump, chat_rows(3))
    del pump.waiting[0]
    let_pass(pump, DAY)
    assert len(pump.waiting) == 2
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert sum(pump.api.billed.values()) == 3


def test_shards_that_are_not_due_yet_are_made_due_though_their_queue_is_full(pump: Pump, chat_rows: Rows) -> None:
    """Whoever planned them died before that: it is no message that could wait in a queue."""
    planned(pump, chat_rows(1))
    job_id = planned(pump, chat_rows(3))
    store, pump.waiting[:] = pump.store, [it for it in pump.waiting if it.message.job != job_id]
    store.connection.client.hset(f"{store.connection.prefix}job:{job_id}", "due_from", "0")
    store.connection.client.zrem(f"{store.connection.prefix}due", *(f"{job_id}/{index}" for index in range(3)))
    store.connection.client.zadd(f"{store.connection.prefix}due", {f"{job_id}/{JOB}": store.now()})
    pump.sweep()
    assert {place for place in store.due.unfinished() if place[0] == job_id} == {(job_id, index) for index in range(3)}
    pump.run_until_idle()
    assert pump.job(job_id).stage == State.SUCCEEDED
    assert sum(pump.api.billed.values()) == 4


def test_a_record_that_cannot_be_read_does_not_hide_what_waits(pump: Pump, chat_rows: Rows) -> None:
    """Neither is its job: what is due after it, and lost, is published again."""
    broken, job_id = planned(pump, chat_rows(1)), planned(pump, chat_rows(1))
    store = pump.store
    store.connection.client.delete(f"{store.connection.prefix}shard:{broken}:0")
    store.connection.client.set(f"{store.connection.prefix}shard:{broken}:0", "no hash")
    pump.waiting.clear()
    let_pass(pump, 900)
    assert {it.message.job for it in pump.waiting} == {job_id}
    store.connection.client.delete(f"{store.connection.prefix}job:{broken}")
    store.connection.client.set(f"{store.connection.prefix}job:{broken}", "no hash")
    pump.waiting.clear()
    let_pass(pump, 3_600)
    assert {it.message.job for it in pump.waiting} == {job_id}


def test_void_messages_that_are_taken_show_that_a_queue_moves(pump: Pump, chat_rows: Rows) -> None:
    """A worker that is still busy with what lies before it takes them: what is overdue is published again as before."""
    job_id = planned(pump, chat_rows(2))
    lost = pump.waiting.pop()
    for index in (0, 0, 0):
        pump.job_runner.republish(job_id, index)  # as cancel does: each makes the one before it void
    let_pass(pump, 900)
    assert lost.message.index not in {it.message.index for it in pump.waiting}
    pump.step()  # a void one
    let_pass(pump, 900)
    assert lost.message.index in {it.message.index for it in pump.waiting}


def test_a_worker_that_listens_and_takes_nothing_is_given_up_after_an_hour(pump: Pump, chat_rows: Rows) -> None:
    """Its queue may hold other people's messages, and ours be lost: it heals, at a bounded pace."""
    planned(pump, chat_rows(1))

    def listen_for(seconds: int) -> int:
        for _ in range(seconds // 240):
            pump.advance(240)
            pump.store.queues.note_listening("w1", ["deep"])
            pump.sweep()
        return len(pump.waiting)

    assert listen_for(3_000) == 1
    assert listen_for(3_000) == 2
    assert 4 <= listen_for(DAY) <= 6


def test_a_worker_that_takes_nothing_for_a_month_does_not_fill_its_queue(pump: Pump, chat_rows: Rows) -> None:
    """It hangs, and says that it listens. Each message that is sent again leaves one behind: it was one an hour."""
    planned(pump, chat_rows(2))
    for _ in range(30 * 24):
        pump.advance(3_600)
        pump.store.queues.note_listening("w", ["deep"])
        pump.sweep()
    assert 2 * 30 <= len(pump.waiting) <= 2 * 40


def test_one_dead_queue_does_not_hold_up_what_is_overdue_elsewhere(pump: Pump, chat_rows: Rows) -> None:
    """However much of it there is: it is put aside, and looked at again."""
    planned(pump, chat_rows(7))
    alive = pump.submit(chat_rows(1), queue="batchpipe")
    pump.waiting[:] = [it for it in pump.waiting if it.message.job != alive]
    pump.advance(700)
    assert overdue.publish_overdue(pump.job_runner, limit=2) == 1
    assert [it.message.job for it in pump.waiting][-1] == alive


def test_a_broker_that_does_not_tell_gets_messages_as_before(pump: Pump, chat_rows: Rows) -> None:
    pump.waiting_in = lambda queue: None
    planned(pump, chat_rows(1))
    let_pass(pump, DAY)
    assert 40 < len(pump.waiting) < 60


def test_the_log_says_that_work_waits_in_a_queue_without_a_worker_and_is_not_filled_by_it(
    pump: Pump, chat_rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    planned(pump, chat_rows(3))
    with caplog.at_level(logging.WARNING):
        let_pass(pump, DAY)
    said = [record.getMessage() for record in caplog.records if "no worker listens" in record.getMessage()]
    assert said == [
        "3 pieces of work wait in queue deep, and no worker listens on it: start one (batchpipe worker --queues deep)"
    ]


def test_the_broker_tells_how_many_messages_wait(tmp_path: Path, redis_url: str) -> None:
    """A queue that it does not know holds none; one that cannot be reached tells nothing."""
    app = make_app(Settings(_env_file=None, home=tmp_path, redis_url=SecretStr(redis_url)))
    current_site().app = app
    assert waiting_in("counted") == 0
    for _ in range(3):
        publish(Message("job_x", JOB, 1, State.PENDING, ["t"], "counted"))
    assert waiting_in("counted") == 3

    nowhere = make_app(Settings(_env_file=None, home=tmp_path, redis_url=SecretStr("redis://127.0.0.1:1/0")))
    current_site().app = nowhere
    assert waiting_in("counted") is None


def test_the_queue_of_a_run_that_is_done_goes_with_what_is_left_in_it(
    tmp_path: Path, redis_url: str, prefix: str
) -> None:
    app = make_app(Settings(_env_file=None, home=tmp_path, redis_url=SecretStr(redis_url)))
    current_site().app, queue = app, f"{prefix}run"  # of this test alone: they share a Redis
    with redis.Redis.from_url(redis_url) as server:
        before = set(server.scan_iter())
        publish(Message("job_x", JOB, 1, State.PENDING, ["t"], queue))
        assert set(server.scan_iter()) - before
        forget_queue(queue)
        assert set(server.scan_iter()) - before == set()
