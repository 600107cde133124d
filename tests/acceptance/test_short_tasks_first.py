"""Short work does not wait behind long transfers, though it lies behind them in the queue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec

import psutil
import pytest
import redis

from batchpipe.sandbox import Sandbox
from tests.acceptance.site import Shop
from tests.acceptance.user_machine import Machine, Process, request, until

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]
#: Of one row: too much for a small shard (``slots.SMALL_BYTES``).
LARGE = 300_000
UPLOADS = 60


def our_worker(*options: str) -> Callable[[Machine], Process]:
    return lambda machine: machine.worker(*options)


def celery_worker(*options: str) -> Callable[[Machine], Process]:
    """Celery's own command, with batchpipe's app."""

    def start(machine: Machine) -> Process:
        worker = machine.start_python(
            "-m", "celery", "-A", "batchpipe.worker", "worker", "--loglevel", "INFO", *options
        )
        machine.await_ready(worker)
        return worker

    return start


def worker_of_site(*options: str) -> Callable[[Machine], Process]:
    """The same with the app of a site."""

    def start(machine: Machine) -> Process:
        assert machine.redis_url is not None
        worker = Shop(machine, machine.redis_url).celery("worker", "--loglevel", "INFO", *options)
        machine.await_ready(worker)
        return worker

    return start


def behind_uploads(
    new_machine: NewMachine, new_sandbox: NewSandbox, *, seconds: float, lease: str, uploads: int = UPLOADS
) -> tuple[Machine, Sandbox, str]:
    """A machine with a job whose uploads, of so many seconds each, are more than any worker here does at once."""
    sandbox = new_sandbox()
    sandbox.faults.add("slow_upload", bytes=LARGE, seconds=seconds)
    machine = new_machine("short", provider=sandbox, BATCHPIPE_LEASE_SECONDS=lease)
    machine.write("large.jsonl", b"".join(large_row(f"r{number}") for number in range(uploads)))
    return machine, sandbox, machine.submit(machine.folder / "large.jsonl", "--max-rows", "1", output="large")


def large_row(custom_id: str) -> bytes:
    return json.dumps(request(custom_id, messages=[{"role": "user", "content": "x" * LARGE}])).encode() + b"\n"


def stages(machine: Machine, job_id: str) -> Counter[str]:
    return Counter(shard["stage"] for shard in machine.json("status", job_id)["shards"])


def under_way(sandbox: Sandbox) -> int:
    """Uploads that the provider has not answered, those of killed processes among them."""
    return sum(call.route == "POST /v1/files" and call.status is None for call in sandbox.calls)


def await_uploads(sandbox: Sandbox, number: int) -> None:
    until(lambda: under_way(sandbox) == number, what=f"{number} uploads have begun")


def finish_small(machine: Machine, number: int = 1) -> None:
    small = machine.submit(machine.input(1, f"small{number}.jsonl"), output=f"small{number}")
    assert machine.run("wait", small, "--timeout", "30").code == 0


@pytest.mark.parametrize(
    ("start", "most"),
    [
        pytest.param(our_worker(), 5, id="threads"),
        pytest.param(our_worker("--concurrency", "2"), 1, id="two threads", marks=pytest.mark.slow),
        pytest.param(our_worker("--pool", "prefork", "--concurrency", "4"), 2, id="prefork", marks=pytest.mark.slow),
        pytest.param(worker_of_site("--pool", "prefork", "--concurrency", "2"), 1, id="site", marks=pytest.mark.slow),
        pytest.param(
            celery_worker("--pool", "gevent", "--concurrency", "10"),
            7,
            id="gevent",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed"),
            ],
        ),
    ],
)
def test_a_job_of_one_row_is_done_while_sixty_uploads_wait(
    new_machine: NewMachine, new_sandbox: NewSandbox, start: Callable[[Machine], Process], most: int
) -> None:
    """It waited for all of them, and behind six hundred for the better part of an hour."""
    machine, sandbox, large = behind_uploads(new_machine, new_sandbox, seconds=8.0, lease="30")
    start(machine)
    await_uploads(sandbox, most)

    finish_small(machine)

    found = stages(machine, large)
    assert found["planned"] >= UPLOADS - 4 * most, found
    assert under_way(sandbox) <= most
    assert machine.redis_url is not None
    with redis.Redis.from_url(machine.redis_url) as server:
        waiting = sum(server.llen(key) for key in server.scan_iter("batchpipe*", _type="list"))
        assert waiting <= UPLOADS  # the sweep has published none of those that wait again


@pytest.mark.slow
def test_what_a_killed_child_held_is_free_again(new_machine: NewMachine, new_sandbox: NewSandbox) -> None:
    """Of two children one may upload. Else nothing would be uploaded any more."""
    machine, sandbox, large = behind_uploads(new_machine, new_sandbox, seconds=60.0, lease="3", uploads=4)
    worker = machine.worker("--pool", "prefork", "--concurrency", "2")
    for begun in (1, 2):
        await_uploads(sandbox, begun)
        finish_small(machine, begun)
        assert under_way(sandbox) == begun
        for child in children(worker):
            child.kill()
    sandbox.faults.clear()
    until(lambda: not stages(machine, large)["planned"], what="all uploads have ended")


def children(worker: Process) -> list[psutil.Process]:
    """The processes of its pool."""
    return [child for child in worker.children() if child.ppid() == worker.pid]
