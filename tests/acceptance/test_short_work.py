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
from tests.acceptance.user_machine import Place, Process, request, until

NewPlace = Callable[..., Place]
NewSandbox = Callable[..., Sandbox]
#: Of one row: too much for a small shard (``slots.SMALL_BYTES``).
LARGE = 300_000
UPLOADS = 60


def our_worker(*options: str) -> Callable[[Place], Process]:
    return lambda place: place.worker(*options)


def celery_worker(*options: str) -> Callable[[Place], Process]:
    """Celery's own command, with batchpipe's app."""

    def start(place: Place) -> Process:
        worker = place.start_python("-m", "celery", "-A", "batchpipe.worker", "worker", "--loglevel", "INFO", *options)
        place.await_ready(worker)
        return worker

    return start


def worker_of_site(*options: str) -> Callable[[Place], Process]:
    """The same with the app of a site."""

    def start(place: Place) -> Process:
        assert place.redis_url is not None
        worker = Shop(place, place.redis_url).celery("worker", "--loglevel", "INFO", *options)
        place.await_ready(worker)
        return worker

    return start


def behind_uploads(
    new_place: NewPlace, new_sandbox: NewSandbox, *, seconds: float, lease: str, uploads: int = UPLOADS
) -> tuple[Place, Sandbox, str]:
    """A place with a job whose uploads, of so many seconds each, are more than any worker here does at once."""
    sandbox = new_sandbox()
    sandbox.faults.add("slow_upload", bytes=LARGE, seconds=seconds)
    place = new_place("short", provider=sandbox, BATCHPIPE_LEASE_SECONDS=lease)
    place.write("large.jsonl", b"".join(large_row(f"r{number}") for number in range(uploads)))
    return place, sandbox, place.submit(place.folder / "large.jsonl", "--max-rows", "1", output="large")


def large_row(custom_id: str) -> bytes:
    return json.dumps(request(custom_id, messages=[{"role": "user", "content": "x" * LARGE}])).encode() + b"\n"


def stages(place: Place, job_id: str) -> Counter[str]:
    return Counter(shard["stage"] for shard in place.json("status", job_id)["shards"])


def under_way(sandbox: Sandbox) -> int:
    """Uploads that the provider has not answered, those of killed processes among them."""
    return sum(call.route == "POST /v1/files" and call.status is None for call in sandbox.calls)


def await_uploads(sandbox: Sandbox, number: int) -> None:
    until(lambda: under_way(sandbox) == number, what=f"{number} uploads have begun")


def finish_small(place: Place, number: int = 1) -> None:
    small = place.submit(place.input(1, f"small{number}.jsonl"), output=f"small{number}")
    assert place.run("wait", small, "--timeout", "30").code == 0


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
    new_place: NewPlace, new_sandbox: NewSandbox, start: Callable[[Place], Process], most: int
) -> None:
    """It waited for all of them, and behind six hundred for the better part of an hour."""
    place, sandbox, large = behind_uploads(new_place, new_sandbox, seconds=8.0, lease="30")
    start(place)
    await_uploads(sandbox, most)

    finish_small(place)

    found = stages(place, large)
    assert found["planned"] >= UPLOADS - 4 * most, found
    assert under_way(sandbox) <= most
    assert place.redis_url is not None
    with redis.Redis.from_url(place.redis_url) as server:
        waiting = sum(server.llen(key) for key in server.scan_iter("batchpipe*", _type="list"))
        assert waiting <= UPLOADS  # the sweep has published none of those that wait again


@pytest.mark.slow
def test_what_a_killed_child_held_is_free_again(new_place: NewPlace, new_sandbox: NewSandbox) -> None:
    """Of two children one may upload. Else nothing would be uploaded any more."""
    place, sandbox, large = behind_uploads(new_place, new_sandbox, seconds=60.0, lease="3", uploads=4)
    worker = place.worker("--pool", "prefork", "--concurrency", "2")
    for begun in (1, 2):
        await_uploads(sandbox, begun)
        finish_small(place, begun)
        assert under_way(sandbox) == begun
        for child in children(worker):
            child.kill()
    sandbox.faults.clear()
    until(lambda: not stages(place, large)["planned"], what="all uploads have ended")


def children(worker: Process) -> list[psutil.Process]:
    """The processes of its pool."""
    return [child for child in worker.children() if child.ppid() == worker.pid]
