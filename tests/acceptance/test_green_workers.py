"""Workers of green threads: all of them stand still while one of them reads a file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from tests.acceptance.user_machine import Place, Process, read_rows

pytestmark = pytest.mark.slow
NewPlace = Callable[..., Place]
#: Reading so many takes several times as long as a lease.
ROWS = 1_000_000


def needs(pool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(pool) is None, reason=f"{pool} is not installed")


def green_worker(place: Place, pool: str) -> Process:
    """Celery's own command: it makes the threads green before anything is imported."""
    command = ("-m", "celery", "-A", "batchpipe.worker", "worker", "-P", pool, "-c", "10", "--loglevel", "INFO")
    worker = place.start_python(*command)
    place.await_ready(worker)
    return worker


@needs("gevent")
def test_a_prepare_that_is_longer_than_a_lease_ends(new_place: NewPlace) -> None:
    """The last row is wrong, so the end of the whole reading is known by what is said."""
    place = new_place("long")  # the leases of these tests are of 3 s
    line = b'{"custom_id":"r%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
    with (place.folder / "input.jsonl").open("wb") as file:
        file.writelines(line % number for number in range(ROWS))
        file.write(b"this is no request\n")
    green_worker(place, "gevent")
    job = place.submit(place.folder / "input.jsonl")
    done = place.start("wait", job, "--timeout", "100").finish(110)
    assert f"line {ROWS + 1}" in done.out + done.err
    shown = place.json("status", job)
    assert shown["error"]["code"] == "invalid_input"
    log = place.run("logs", job)
    assert "deadline" not in log.out


@needs("gevent")
def test_jobs_run_to_their_end(new_place: NewPlace) -> None:
    place = new_place("green")
    worker = green_worker(place, "gevent")
    done = place.run("wait", place.submit(place.input(40), "--max-rows", "4"), "--timeout", "40")
    assert done.code == 0, done.err + worker.err
    assert len(read_rows(place.folder / "out/output.jsonl")) == 40


@needs("eventlet")
def test_a_worker_of_eventlet_is_refused_by_name(new_place: NewPlace) -> None:
    """The SDK's transport does not load there. Other tasks of the site go on."""
    assert "-P eventlet: the provider cannot be called there" in green_worker(new_place("event"), "eventlet").err


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_our_own_command_says_how_such_a_worker_is_started(pool: str, new_place: NewPlace) -> None:
    """It has imported too much by then to make threads green."""
    done = new_place(f"own-{pool}").run("worker", "--pool", pool)
    assert done.code == 2
    assert "celery -A batchpipe.worker worker -P gevent" in done.err
    assert "Traceback" not in done.err
