"""Workers of green threads: all of them stand still while one of them reads a file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from tests.acceptance.user_machine import Machine, Process, read_rows

pytestmark = pytest.mark.slow
NewMachine = Callable[..., Machine]
#: Reading so many takes several times as long as a lease.
ROWS = 1_000_000


def needs(pool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(pool) is None, reason=f"{pool} is not installed")


def green_worker(machine: Machine, pool: str) -> Process:
    """Celery's own command: it makes the threads green before anything is imported."""
    command = ("-m", "celery", "-A", "batchpipe.worker", "worker", "-P", pool, "-c", "10", "--loglevel", "INFO")
    worker = machine.start_python(*command)
    machine.await_ready(worker)
    return worker


@needs("gevent")
def test_a_prepare_that_is_longer_than_a_lease_ends(new_machine: NewMachine) -> None:
    """The last row is wrong, so the end of the whole reading is known by what is said."""
    machine = new_machine("long")  # the leases of these tests are of 3 s
    line = b'{"custom_id":"r%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n'
    with (machine.folder / "input.jsonl").open("wb") as file:
        file.writelines(line % number for number in range(ROWS))
        file.write(b"this is no request\n")
    green_worker(machine, "gevent")
    job = machine.submit(machine.folder / "input.jsonl")
    done = machine.start("wait", job, "--timeout", "100").finish(110)
    assert f"line {ROWS + 1}" in done.out + done.err
    shown = machine.json("status", job)
    assert shown["error"]["code"] == "invalid_input"
    log = machine.run("logs", job)
    assert "deadline" not in log.out


@needs("gevent")
def test_jobs_run_to_their_end(new_machine: NewMachine) -> None:
    machine = new_machine("green")
    worker = green_worker(machine, "gevent")
    done = machine.run("wait", machine.submit(machine.input(40), "--max-rows", "4"), "--timeout", "40")
    assert done.code == 0, done.err + worker.err
    assert len(read_rows(machine.folder / "out/output.jsonl")) == 40


@needs("eventlet")
def test_a_worker_of_eventlet_is_refused_by_name(new_machine: NewMachine) -> None:
    """The SDK's transport does not load there. Other tasks of the site go on."""
    assert "-P eventlet: the provider cannot be called there" in green_worker(new_machine("event"), "eventlet").err


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_our_own_command_says_how_such_a_worker_is_started(pool: str, new_machine: NewMachine) -> None:
    """It has imported too much by then to make threads green."""
    done = new_machine(f"own-{pool}").run("worker", "--pool", pool)
    assert done.code == 2
    assert "celery -A batchpipe.worker worker -P gevent" in done.err
    assert "Traceback" not in done.err
