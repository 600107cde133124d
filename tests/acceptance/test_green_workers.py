"""Workers of green threads: all of them stand still while one of them reads a file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from tests.acceptance.place import Place, Process, read_rows

pytestmark = pytest.mark.slow
NewPlace = Callable[..., Place]
#: Reading so many takes several times as long as a lease.
ROWS = 1_000_000
POOLS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("gevent", "eventlet")
]


def green_worker(place: Place, pool: str) -> Process:
    """Celery's own command: it makes the threads green before anything is imported."""
    command = ("-m", "celery", "-A", "batchpipe.worker", "worker", "-P", pool, "-c", "10", "--loglevel", "INFO")
    worker = place.start_python(*command)
    place.await_ready(worker)
    return worker


@pytest.mark.parametrize("pool", POOLS)
def test_a_prepare_that_is_longer_than_a_lease_ends(pool: str, new_place: NewPlace) -> None:
    """The last row is wrong, so the end of the whole reading is known by what is said."""
    place = new_place(f"long-{pool}")  # the leases of these tests are of 3 s
    line = b'{"custom_id":"r%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
    with (place.folder / "input.jsonl").open("wb") as file:
        file.writelines(line % number for number in range(ROWS))
        file.write(b"this is no request\n")
    green_worker(place, pool)
    job = place.submit(place.folder / "input.jsonl")
    done = place.start("wait", job, "--timeout", "100").finish(110)
    assert f"line {ROWS + 1}" in done.out + done.err
    shown = place.json("status", job)
    assert shown["error"]["code"] == "invalid_input"
    log = place.run("logs", job)
    assert "deadline" not in log.out


@pytest.mark.parametrize("pool", POOLS[:1])
def test_jobs_run_to_their_end(pool: str, new_place: NewPlace) -> None:
    place = new_place(f"green-{pool}")
    worker = green_worker(place, pool)
    done = place.run("wait", place.submit(place.input(40), "--max-rows", "4"), "--timeout", "40")
    assert done.code == 0, done.err + worker.err
    assert len(read_rows(place.folder / "out/output.jsonl")) == 40


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_our_own_command_says_how_such_a_worker_is_started(pool: str, new_place: NewPlace) -> None:
    """It has imported too much by then to make threads green."""
    done = new_place(f"own-{pool}").run("worker", "--pool", pool)
    assert done.code == 2
    assert f"celery -A batchpipe.worker worker -P {pool}" in done.err
    assert "Traceback" not in done.err
