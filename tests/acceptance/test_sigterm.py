"""A worker that is told to stop hands back its work in time, whatever it is doing; nothing is lost or paid twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, Process, batches_of, read_rows, until

pytestmark = pytest.mark.slow

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]
ROWS = [f"r{number}" for number in range(6)]
#: Far longer than a test takes: who waits for this call does not end in time.
HELD_SECONDS = 100.0
REMAPPED = {"REMAP_SIGTERM": "SIGQUIT", "BATCHPIPE_STOP_SECONDS": "2"}


def queued(machine: Machine) -> tuple[int, int]:
    """Messages that wait in the queue, and messages that nobody has answered for."""
    assert machine.redis_url is not None
    with redis.Redis.from_url(machine.redis_url) as server:
        return int(server.llen("batchpipe")), int(server.hlen("unacked"))


def told_to_stop(machine: Machine, worker: Process, number: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
    worker.popen.send_signal(number)
    code = worker.finish(40).code
    waiting, unanswered = queued(machine)
    return {"code": code, "queued": waiting, "unacked": unanswered, "children": []}


def go_on(machine: Machine, job: str, observed: dict[str, Any]) -> dict[str, Any]:
    machine.worker()
    done = machine.run("wait", job, "--timeout", "40")
    return {**observed, "machine": machine, "job": job, "done": done}


def during_a_call(new_machine: NewMachine, new_sandbox: NewSandbox, pool: str, route: str) -> dict[str, Any]:
    """The provider does not answer a call; meanwhile the worker is told to stop."""
    sandbox = new_sandbox()
    machine = new_machine(pool, provider=sandbox, **REMAPPED)
    held = sandbox.faults.add("delay", route=route, seconds=HELD_SECONDS, times=1)
    worker = machine.worker("--pool", pool, "--concurrency", "2")
    job = machine.submit(machine.input(6), "--max-rows", "3")
    until(lambda: held.hits, what=f"{route} is held")
    observed = told_to_stop(machine, worker)
    sandbox.faults.clear()
    return go_on(machine, job, observed)


def while_polls_wait(new_machine: NewMachine, new_sandbox: NewSandbox, pool: str, **env: str) -> dict[str, Any]:
    sandbox = new_sandbox()
    long = {"BATCHPIPE_POLL_MIN_SECONDS": "60", "BATCHPIPE_LEASE_SECONDS": "60", "BATCHPIPE_SWEEP_SECONDS": "60"}
    machine = new_machine(f"polls-{pool}", provider=sandbox, **{**long, **env})
    sandbox.faults.add("stuck")
    worker = machine.worker("--pool", pool, "--concurrency", "2")
    job = machine.submit(machine.input(6), "--max-rows", "3")
    until(lambda: len(batches_of(sandbox, job)) == 2, what="both batches are created")
    until(lambda: queued(machine) == (0, 2), what="two polls wait in the worker")
    observed = told_to_stop(machine, worker)
    sandbox.faults.clear()
    machine.environment["BATCHPIPE_POLL_MIN_SECONDS"] = "0.3"
    return {**observed, "machine": machine, "job": job}


def patiently(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """The call ends within STOP_SECONDS, which are 30 here."""
    sandbox = new_sandbox()
    machine = new_machine("patient", provider=sandbox)
    held = sandbox.faults.add("delay", route="POST /v1/files", seconds=4, times=1)
    worker = machine.worker("--concurrency", "2")
    job = machine.submit(machine.input(3))
    until(lambda: held.hits, what="the upload is held")
    observed = told_to_stop(machine, worker)
    return {**go_on(machine, job, observed), "uploads": held.hits}


def together(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Ctrl-C in a terminal, or a supervisor that signals the whole group: the children of the pool get it, too."""
    sandbox = new_sandbox()
    machine = new_machine("group", provider=sandbox, **REMAPPED)
    held = sandbox.faults.add("delay", route="POST /v1/files", seconds=HELD_SECONDS, times=1)
    worker = machine.worker("--pool", "prefork", "--concurrency", "2")
    job = machine.submit(machine.input(6), "--max-rows", "3")
    until(lambda: held.hits, what="the upload is held")
    children = worker.children()
    os.killpg(worker.pid, signal.SIGTERM)
    code = worker.finish(40).code
    waiting, unanswered = queued(machine)
    sandbox.faults.clear()
    left = [child.pid for child in children if child.is_running()]
    return go_on(machine, job, {"code": code, "queued": waiting, "unacked": unanswered, "children": left})


@pytest.fixture(scope="module")
def stories(at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Future[Any]]:
    tell, both = at_once.submit, (new_machine, new_sandbox)
    return {
        "upload, threads": tell(during_a_call, *both, "threads", "POST /v1/files"),
        "upload, prefork": tell(during_a_call, *both, "prefork", "POST /v1/files"),
        "create, threads": tell(during_a_call, *both, "threads", "POST /v1/batches"),
        "group": tell(together, *both),
        "patient": tell(patiently, *both),
        "polls, threads": tell(while_polls_wait, *both, "threads", REMAP_SIGTERM="SIGQUIT"),
        "polls, prefork": tell(while_polls_wait, *both, "prefork", REMAP_SIGTERM="SIGQUIT"),
        "polls, no remap": tell(while_polls_wait, *both, "threads"),
    }


@pytest.mark.parametrize("story", ["upload, threads", "upload, prefork", "create, threads", "group", "patient"])
def test_a_worker_that_is_told_to_stop_during_a_call_loses_and_repeats_nothing(
    stories: dict[str, Future[Any]], story: str
) -> None:
    """It does not wait for a call longer than STOP_SECONDS; 0 is its exit code; the message is in the queue again."""
    observed = stories[story].result()
    assert observed["code"] == 0
    assert (observed["unacked"], observed["children"]) == (0, [])
    assert observed["queued"] >= 1
    assert observed["done"].code == 0, observed["done"].err
    machine, job = observed["machine"], observed["job"]
    rows = [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")]
    assert rows == ROWS[: len(rows)]
    assert machine.billed(job) == dict.fromkeys(rows, 1)
    assert len(machine.batches(job)) == len(rows) // 3


def test_an_upload_that_ends_in_time_is_not_repeated(stories: dict[str, Future[Any]]) -> None:
    observed = stories["patient"].result()
    assert observed["uploads"] == 1


@pytest.mark.parametrize("story", ["polls, threads", "polls, prefork", "polls, no remap"])
def test_polls_that_wait_go_back_to_the_queue(stories: dict[str, Future[Any]], story: str) -> None:
    """An idle worker ends at once: it does not wait for tasks that it does not have."""
    observed = stories[story].result()
    assert (observed["code"], observed["queued"], observed["unacked"]) == (0, 2, 0)


#: Beat that publishes for ever in one call that lets no signal handler run, as a look-up of a host's name does.
STUCK_BEAT = """
import ctypes, sys
from celery.signals import before_task_publish
from batchpipe.cli import main
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock

@before_task_publish.connect
def publish(**_):
    print("is stuck", file=sys.stderr, flush=True)
    while True:
        lock(mutex)  # it is locked already from the second time on

sys.argv = ["batchpipe", "beat"]
main()
"""


def test_beat_ends_in_time_though_a_name_server_does_not_answer(new_machine: NewMachine) -> None:
    """A supervisor waits for 15 seconds before it kills."""
    machine = new_machine("beat")
    beat = machine.start_python("-c", STUCK_BEAT)
    until(lambda: "is stuck" in beat.err, what="beat is stuck")
    beat.popen.send_signal(signal.SIGTERM)

    assert beat.finish(12).code == 0
