"""Celery's pools, under Celery's own command."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.user_machine import Machine, Process, read_rows, until
from tests.matrix.cache import environment

pytestmark = pytest.mark.matrix
NewMachine = Callable[..., Machine]


def start(machine: Machine, pool: str, *options: str) -> Process:
    if pool == "eventlet":
        machine.interpreter = environment("eventlet", "eventlet")
    command = ("-m", "celery", "-A", "batchpipe.worker", "worker", "-P", pool, "--loglevel", "INFO", *options)
    worker = machine.start_python(*command)
    machine.await_ready(worker)
    return worker


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_job_ends_in_this_pool(pool: str, new_machine: NewMachine) -> None:
    """And the worker ends when it is told to."""
    machine = new_machine(pool)
    worker = start(machine, pool, *(() if pool == "solo" else ("--concurrency", "2")))
    job = machine.submit(machine.input(9), "--max-rows", "3")
    done = machine.run("wait", job, "--timeout", "60")

    assert done.code == 0, done.err + worker.err
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == [f"r{n}" for n in range(9)]
    assert set(machine.billed(job).values()) == {1}
    worker.popen.terminate()
    assert worker.finish(40).code == 0
    assert "Traceback" not in worker.err + worker.out


@pytest.mark.ci
def test_a_worker_of_eventlet_says_that_it_cannot_and_stays(new_machine: NewMachine) -> None:
    """The SDK's transport does not load there. The job waits, unpaid, for a worker of another pool."""
    machine = new_machine("eventlet")
    worker = start(machine, "eventlet", "--concurrency", "2")
    job = machine.submit(machine.input(2))
    until(lambda: "-P eventlet: the provider cannot be called there" in worker.err, what="the worker says it")
    worker.popen.terminate()
    worker.finish(40)
    start(machine, "threads")

    assert machine.run("wait", job, "--timeout", "60").code == 0
    assert set(machine.billed(job).values()) == {1}
