"""Celery's pools, under Celery's own command."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.user_machine import Place, Process, read_rows, until
from tests.matrix.cache import environment

pytestmark = pytest.mark.matrix
NewPlace = Callable[..., Place]


def start(place: Place, pool: str, *options: str) -> Process:
    if pool == "eventlet":
        place.interpreter = environment("eventlet", "eventlet")
    command = ("-m", "celery", "-A", "batchpipe.worker", "worker", "-P", pool, "--loglevel", "INFO", *options)
    worker = place.start_python(*command)
    place.await_ready(worker)
    return worker


@pytest.mark.ci
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_job_ends_in_this_pool(pool: str, new_place: NewPlace) -> None:
    """And the worker ends when it is told to."""
    place = new_place(pool)
    worker = start(place, pool, *(() if pool == "solo" else ("--concurrency", "2")))
    job = place.submit(place.input(9), "--max-rows", "3")
    done = place.run("wait", job, "--timeout", "60")

    assert done.code == 0, done.err + worker.err
    assert [row["custom_id"] for row in read_rows(place.folder / "out/output.jsonl")] == [f"r{n}" for n in range(9)]
    assert set(place.billed(job).values()) == {1}
    worker.popen.terminate()
    assert worker.finish(40).code == 0
    assert "Traceback" not in worker.err + worker.out


@pytest.mark.ci
def test_a_worker_of_eventlet_says_that_it_cannot_and_stays(new_place: NewPlace) -> None:
    """The SDK's transport does not load there. The job waits, unpaid, for a worker of another pool."""
    place = new_place("eventlet")
    worker = start(place, "eventlet", "--concurrency", "2")
    job = place.submit(place.input(2))
    until(lambda: "-P eventlet: the provider cannot be called there" in worker.err, what="the worker says it")
    worker.popen.terminate()
    worker.finish(40)
    start(place, "threads")

    assert place.run("wait", job, "--timeout", "60").code == 0
    assert set(place.billed(job).values()) == {1}
