"""kill -9 at every stage: another worker goes on, every row is there, nothing is paid twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, Process, batches_of, read_rows, request_lines, until

pytestmark = pytest.mark.slow

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]
ROWS = [f"r{number}" for number in range(6)]
HELD_SECONDS = 60.0

#: stage -> the fault that holds its call, and the route of the call.
HOLDS = {
    "upload": ("delay", "POST /v1/files"),
    "create, before the provider has seen it": ("delay", "POST /v1/batches"),
    "create, after the provider has made the batch": ("delay_after", "POST /v1/batches"),
    "poll": ("delay", "GET /v1/batches/{id}"),
    "download": ("delay", "GET /v1/files/{id}/content"),
}


def killed_at_a_call(new_machine: NewMachine, new_sandbox: NewSandbox, kind: str, route: str) -> dict[str, Any]:
    """The provider does not answer one call; meanwhile the worker is killed."""
    sandbox = new_sandbox()
    machine = new_machine("killed", provider=sandbox)
    held = sandbox.faults.add(kind, route=route, seconds=HELD_SECONDS, times=1)
    worker = machine.worker()
    job = machine.submit(machine.input(6), "--max-rows", "3")
    until(lambda: held.hits, what=f"{route} is held")
    if kind == "delay_after":
        until(lambda: len(batches_of(sandbox)) == 2, what="the batch is made")
    return go_on(machine, job, worker)


def go_on(machine: Machine, job: str, worker: Process) -> dict[str, Any]:
    """Kill the worker, start another, and wait for the end."""
    worker.kill()
    machine.worker()
    done = machine.run("wait", job, "--timeout", "35")
    return {"machine": machine, "job": job, "done": done, "status": job_file(machine)}


def job_file(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((machine.folder / "out/job.json").read_bytes())
    return found


def killed_at_merge(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Merge reads the order of the rows; in its place lies a pipe into which nobody writes."""
    sandbox = new_sandbox()
    machine = new_machine("merge", provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    worker = machine.worker()
    job = machine.submit(machine.input(6), "--max-rows", "3")
    until(lambda: len(batches_of(sandbox)) == 2, what="both batches are created")
    [order] = (machine.folder / "out/.batchpipe" / job).glob("order-*")
    aside = order.with_name("aside")
    order.rename(aside)
    os.mkfifo(order)
    sandbox.faults.remove(stuck)
    pipe = until(lambda: writer_of(order), what="merge reads the order")
    try:
        return go_on_after_merge(machine, job, worker, aside, order)
    finally:
        os.close(pipe)


def writer_of(pipe: Path) -> int | None:
    """A handle for writing, once somebody reads."""
    with suppress(OSError):
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    return None


def go_on_after_merge(machine: Machine, job: str, worker: Process, aside: Path, order: Path) -> dict[str, Any]:
    worker.kill()
    aside.rename(order)
    return go_on(machine, job, worker)


@contextmanager
def slow_site(data: bytes) -> Iterator[tuple[str, threading.Event]]:
    """A web server whose first download stops half-way; the event tells when."""
    reached = threading.Event()
    over = threading.Event()

    class Site(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            with suppress(OSError):
                if not reached.is_set():
                    self.wfile.write(data[:200])
                    reached.set()
                    over.wait(HELD_SECONDS)
                else:
                    self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/rows.jsonl", reached
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def killed_at_prepare(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    machine = new_machine("prepare", provider=new_sandbox())
    with slow_site(request_lines(6)) as (url, reached):
        worker = machine.worker()
        done = machine.run("submit", url, "-o", "out", "--max-rows", "3")
        assert done.code == 0, done.err
        assert reached.wait(20)
        return go_on(machine, done.out.strip(), worker)


def run_killed(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """`run` itself is killed while its batch is under way."""
    sandbox = new_sandbox()
    machine = new_machine("run", private=True, provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    command: list[str | Path] = ["run", machine.input(6), "-o", "out", "--max-rows", "3"]
    process = machine.start(*command)
    until(lambda: len(batches_of(sandbox)) == 2, what="both batches are created")
    others = [other for other in machine.leftovers() if other.pid != process.pid]
    process.kill()
    until(lambda: not machine.leftovers(), 15, f"what a run has started ({len(others)}) stops when the run is killed")
    sandbox.faults.remove(stuck)
    again = machine.run(*command)
    job = machine.json("list")[0]["id"]
    return {"machine": machine, "job": job, "done": again, "others": others, "status": job_file(machine)}


def redis_killed(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """The private Redis of a run is killed while its batches are under way."""
    sandbox = new_sandbox()
    machine = new_machine("redis", private=True, provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    process = machine.start("run", machine.input(6), "-o", "out", "--max-rows", "3")
    until(lambda: len(batches_of(sandbox)) == 2, what="both batches are created")
    server = machine.private_redis()
    assert server is not None
    server.kill()
    sandbox.faults.remove(stuck)
    done = process.finish()
    if done.code == 1:  # it may say that Redis is away; then the same command goes on
        done = machine.run("run", machine.input(6), "-o", "out", "--max-rows", "3")
    job = machine.json("list")[0]["id"]
    return {"machine": machine, "job": job, "done": done, "first": process, "status": job_file(machine)}


@pytest.fixture(scope="module")
def stories(
    at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: NewSandbox
) -> dict[str, Future[dict[str, Any]]]:
    observed = {"prepare": at_once.submit(killed_at_prepare, new_machine, new_sandbox)}
    for stage, (kind, route) in HOLDS.items():
        observed[stage] = at_once.submit(killed_at_a_call, new_machine, new_sandbox, kind, route)
    observed["merge"] = at_once.submit(killed_at_merge, new_machine, new_sandbox)
    observed["run"] = at_once.submit(run_killed, new_machine, new_sandbox)
    observed["redis"] = at_once.submit(redis_killed, new_machine, new_sandbox)
    return observed


def check(observed: dict[str, Any]) -> None:
    """It ended well, each row is billed once and there in its order, each shard has one batch."""
    machine, job = observed["machine"], observed["job"]
    assert observed["done"].code == 0, observed["done"].err
    assert (observed["status"]["state"], observed["status"]["rows"]["ok"]) == ("succeeded", 6)
    assert machine.billed(job) == dict.fromkeys(ROWS, 1)
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == ROWS
    kept = {shard["batch_id"] for shard in observed["status"]["shards"]}
    assert kept == {batch.id for batch in machine.batches(job)}
    assert len(kept) == len(observed["status"]["shards"]) == 2


@pytest.mark.parametrize("stage", ["prepare", *HOLDS, "merge"])
def test_a_worker_killed_at_this_stage_costs_time_only(stories: dict[str, Future[Any]], stage: str) -> None:
    """Another worker brings the job to its end: billed once per row, one batch per shard."""
    check(stories[stage].result())


def test_a_killed_run_leaves_nothing_running_and_the_same_command_resumes(stories: dict[str, Future[Any]]) -> None:
    """Its worker misses its parent, its private Redis misses its users."""
    observed = stories["run"].result()
    assert len(observed["others"]) >= 3  # the worker, the Redis and its supervisor
    assert "resuming" in observed["done"].err
    check(observed)


def test_a_run_outlives_a_kill_of_its_private_redis(stories: dict[str, Future[Any]]) -> None:
    """The server comes back with all that it knew."""
    observed = stories["redis"].result()
    check(observed)
    assert "Traceback" not in observed["first"].err
