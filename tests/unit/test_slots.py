"""Long tasks leave some threads of a worker to short ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import get_implementation
from pydantic import SecretStr

from batchpipe.config.settings import Settings
from batchpipe.config.site import current_settings, current_site
from batchpipe.model.records import JOB, Stage, State
from batchpipe.pipeline.messages import Continue, Message, Next, Retry
from batchpipe.pipeline.slots import FEWEST_TRIES, LONGEST_WAIT_SECONDS, MOST_TRIES, SHORTEST_WAIT_SECONDS, Kind, Slots
from batchpipe.storage.local import nameless_file
from batchpipe.store import Connection, Store, new_task_ids
from batchpipe.tasks.app import app_in_use, make_app, state_of
from batchpipe.tasks.celery_tasks import _bounded, bound_long_tasks
from batchpipe.tasks.inspection import waiting_in
from batchpipe.tasks.publishing import publish
from batchpipe.tasks.runtime import runtime
from batchpipe.testing import Pump
from batchpipe.worker import setup as celery_site

Rows = Callable[..., list[dict[str, object]]]
SMALL = (1_000, 10)


def slots_of(at_once: int, clock: Callable[[], float] = time.monotonic) -> Slots:
    return Slots(at_once, nameless_file(), clock)


def take_all(slots: Slots, held: ExitStack, kind: Kind) -> int:
    """How many slots of this kind were free."""
    return sum(iter(lambda: held.enter_context(slots.take(kind)), False))


@pytest.mark.parametrize(
    ("at_once", "jobs", "transfers"), [(3, 1, 1), (4, 1, 2), (8, 2, 5), (16, 4, 11), (100, 25, 74)]
)
def test_some_of_a_worker_is_always_left_to_short_tasks(at_once: int, jobs: int, transfers: int) -> None:
    slots = slots_of(at_once)
    with ExitStack() as held:
        assert take_all(slots, held, "transfer") == transfers
        assert take_all(slots, held, "job") == jobs
    assert jobs + transfers < at_once


@pytest.mark.parametrize(("first", "second"), [("job", "transfer"), ("transfer", "job")])
def test_of_two_one_is_left_to_short_tasks(first: Kind, second: Kind) -> None:
    slots = slots_of(2)
    with slots.take(first) as taken, slots.take(second) as more:
        assert (taken, more) == (True, False)
    with slots.take(second) as taken:
        assert taken


def test_a_slot_is_given_back_whatever_happens() -> None:
    slots = slots_of(3)
    with pytest.raises(ValueError, match="x"), slots.take("transfer"):
        raise ValueError("x")
    with slots.take("transfer") as taken:
        assert taken


def test_children_share_the_slots_and_a_killed_one_holds_none() -> None:
    """What a child has in hand counts for its siblings, and so does who waits."""
    script = """
import json, os, signal
from batchpipe.pipeline.slots import Slots
from batchpipe.storage.local import nameless_file

slots, (read, write) = Slots(4, nameless_file(), lambda: 1_000.0), os.pipe()
child = os.fork()
if not child:
    with slots.take("transfer") as taken:
        os.write(write, json.dumps([taken, slots.wait("transfer")]).encode())
        signal.pause()
of_child = json.loads(os.read(read, 100))
with slots.take("transfer") as second, slots.take("transfer") as third:
    waits = slots.wait("transfer")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with slots.take("transfer") as fourth:
        print(json.dumps([*of_child, second, third, waits, fourth]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    first, first_wait, second, third, second_wait, fourth = json.loads(done.stdout)
    assert [first, second, third, fourth] == [True, True, False, True]
    assert 1.0 == first_wait < second_wait


@pytest.mark.parametrize(
    ("pool", "most", "at_once"),
    [("solo", None, 1), ("threads", None, 6), ("prefork", None, 6), ("prefork", 9, 9)],
)
def test_a_worker_is_bounded_by_what_its_pool_runs_at_once(pool: str, most: int | None, at_once: int) -> None:
    """One that can grow (--autoscale) does so before the last of its processes is taken. Solo runs one."""
    worker = SimpleNamespace(pool_cls=get_implementation(pool), concurrency=6, max_concurrency=most)
    assert celery_site._at_once(worker) == at_once


def test_who_waits_for_a_slot_asks_in_turn_and_not_too_often() -> None:
    """Ten thousand ask no more often than slots become free, twice over, and nobody waits for ever."""
    at = 1_000.0
    slots = slots_of(8, clock=lambda: at)
    with slots.take("transfer"):
        at += 1
        waits = [slots.wait("transfer") for _ in range(600)]
        assert waits == sorted(waits)
        assert waits[0] == SHORTEST_WAIT_SECONDS
        assert waits[-1] == pytest.approx(1.0 + 599 / 2)  # of the slots none has moved for a second
        assert max(slots.wait("transfer") for _ in range(30_000)) == LONGEST_WAIT_SECONDS
    at += 1_000
    assert slots.wait("transfer") == 1.0


@pytest.mark.parametrize(("seconds", "tries"), [(40.0, FEWEST_TRIES), (0.01, MOST_TRIES), (2.0, 5.0)])
def test_tries_follow_the_pace_at_which_slots_become_free(seconds: float, tries: float) -> None:
    """Long transfers cost few of them, and short ones do not leave slots idle."""
    at = 1_000.0
    slots = slots_of(8, clock=lambda: at)
    for _ in range(60):
        with slots.take("transfer"):
            at += seconds
    first, second = slots.wait("transfer"), slots.wait("transfer")
    assert second - first == pytest.approx(1 / tries, rel=0.01)


def test_tries_become_fewer_while_no_slot_becomes_free() -> None:
    """Nobody knows yet how long the first transfers last."""
    at = 1_000.0
    slots = slots_of(8, clock=lambda: at)
    with slots.take("transfer"):
        paces = []
        for _ in range(3):
            first, second = slots.wait("transfer"), slots.wait("transfer")
            paces.append(second - first)
            at += 0.5
    assert paces == pytest.approx([1 / MOST_TRIES, 0.25, 1 / FEWEST_TRIES])


def shard_of(pump: Pump, rows: list[dict[str, object]]) -> str:
    job_id = pump.submit(rows)
    while pump.job(job_id).stage != State.RUNNING:
        assert pump.step() is not None
    return job_id


def test_what_waits_for_a_slot_is_not_overdue(tmp_path: Path, chat_rows: Rows) -> None:
    """Else each sweep would publish it again."""
    pump = Pump(tmp_path)
    job_id = shard_of(pump, chat_rows(20))
    epoch = pump.shards(job_id)[0].epoch
    for _ in range(10):
        assert pump.store.queues.requeue(job_id, 0, epoch, 300.0, small=SMALL) == "later"
        pump.advance(300)
        assert pump.sweep() == 0
    pump.waiting.clear()  # its worker dies
    pump.advance(100)
    assert pump.sweep() == 1


def test_a_small_shard_needs_no_slot_and_a_void_message_is_not_kept(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path)
    job_id = shard_of(pump, chat_rows(1))
    epoch = pump.shards(job_id)[0].epoch
    assert pump.store.queues.requeue(job_id, 0, epoch, 1.0, small=SMALL) == "small"
    assert pump.store.queues.requeue(job_id, 0, epoch + 1, 1.0, small=SMALL) == "claim"
    assert pump.store.queues.requeue(job_id, 7, epoch, 1.0, small=SMALL) == "claim"
    assert pump.store.queues.requeue(job_id, JOB, pump.job(job_id).epoch, 1.0, small=SMALL) == "later"


def test_a_small_job_needs_no_slot(tmp_path: Path, chat_rows: Rows) -> None:
    """Before it is prepared only the bytes of its input are known, and where it lies elsewhere not even they."""
    pump = Pump(tmp_path)

    def verdict(**fields: Any) -> str:
        job = pump.job(pump.submit(chat_rows(1), **fields))
        return pump.store.queues.requeue(job.id, JOB, job.epoch, 1.0, small=SMALL)

    assert verdict(bytes=1_000) == "small"
    assert verdict(bytes=1_000, total=11) == "later"
    assert verdict(bytes=1_001) == "later"
    assert verdict(bytes=None) == "later"


def test_of_a_cancelled_job_nothing_waits_to_be_uploaded(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path)
    job_id = shard_of(pump, chat_rows(20))
    shard = pump.shards(job_id)[0]
    assert pump.store.queues.requeue(job_id, 0, shard.epoch, 1.0, small=SMALL) == "later"
    pump.store.jobs.cancel(job_id)
    assert pump.store.queues.requeue(job_id, 0, pump.shards(job_id)[0].epoch, 1.0, small=SMALL) == "small"


def test_a_job_that_is_cancelled_before_it_was_prepared_ends_while_all_slots_are_taken(
    tmp_path: Path, chat_rows: Rows
) -> None:
    """Nothing of it is read, and its output is free again."""
    pump = Pump(tmp_path)
    job_id = pump.submit(chat_rows(1), bytes=1_000_000)

    def verdict() -> str:
        return pump.store.queues.requeue(job_id, JOB, pump.job(job_id).epoch, 1.0, small=SMALL)

    assert verdict() == "later"
    pump.store.jobs.cancel(job_id)
    while not pump.job(job_id).closed:
        assert verdict() == "small"
        assert pump.step() is not None


@pytest.fixture
def bounded(redis_url: str, prefix: str, tmp_path: Path) -> Pump:
    """Tasks of a worker of four threads, on the records of a pump."""
    url = SecretStr(redis_url)
    current_site().settings = Settings(_env_file=None, redis_url=url, prefix=prefix, home=tmp_path)
    bound_long_tasks(app_in_use(), 4)
    return Pump(tmp_path, store=Store(Connection(runtime().store.connection.client, prefix=prefix)))


def test_large_uploads_lie_behind_short_work_in_a_queue_of_redis(bounded: Pump, prefix: str) -> None:
    """What is taken first is known by the list where it lies. Creates, polls and small shards are never behind."""
    server, queue = bounded.store.connection.client, f"{prefix}queue"
    current_site().app = make_app(current_settings())
    publish(Message("job_1", 0, 1, Stage.PLANNED, new_task_ids(4), queue, large=True))
    publish(Message("job_1", 1, 1, Stage.PLANNED, new_task_ids(4), queue))
    (first,), (last,) = server.lrange(queue, 0, -1), server.lrange(f"{queue}\x06\x169", 0, -1)
    assert json.loads(first)["headers"]["argsrepr"] == "job_1 shard 1"
    message = json.loads(last)
    assert message["headers"]["argsrepr"] == "job_1 shard 0"
    links = json.loads(b64decode(message["body"]))[2]["chain"]
    behind = {link["task"]: link["options"].get("priority") for link in links}
    assert behind == {"batchpipe.create": None, "batchpipe.poll": None, "batchpipe.download": 9}
    assert waiting_in(queue) == 2


def test_a_transfer_without_a_slot_comes_back_and_claims_nothing(bounded: Pump, chat_rows: Rows) -> None:
    job_id = shard_of(bounded, chat_rows(300))
    shard = bounded.shards(job_id)[0]

    def turn() -> Next:
        return Continue("done")

    def take(kind: Kind = "transfer") -> Next:
        return _bounded(SimpleNamespace(app=app_in_use()), kind, job_id, 0, shard.epoch, turn)

    assert take() == Continue()
    with ExitStack() as held:
        slots = state_of(app_in_use()).slots
        assert slots is not None
        for _ in range(2):
            held.enter_context(slots.take("transfer"))
        found = take()
        assert isinstance(found, Retry)
        assert found.after >= 1.0
        assert take("job") == Continue()
    assert take() == Continue()
    assert bounded.shards(job_id)[0].tries == shard.tries
