"""Cancel: rows that are done are kept, nothing goes on at the provider."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, batches_of, read_rows, until

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]


def while_batches_run(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    sandbox = new_sandbox(rows_per_second=4)
    machine = new_machine("running", provider=sandbox)
    machine.worker()
    job = machine.submit(machine.input(80), "--max-rows", "40")
    until(lambda: all(b.completed for b in batches_of(sandbox)) and len(batches_of(sandbox)) == 2, what="rows are done")
    cancelled = machine.json("cancel", job)
    wait = machine.run("wait", job, "--timeout", "30")
    return {"machine": machine, "job": job, "cancelled": cancelled, "wait": wait, "status": machine.json("status", job)}


def after_its_run_was_left(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Ctrl-C, then the `cancel` that it suggests: no worker listens on the queue of that run any more."""
    sandbox = new_sandbox(rows_per_second=1)
    machine = new_machine("left", provider=sandbox)
    process = machine.start("run", machine.input(60), "-o", "out")
    until(lambda: batches_of(sandbox) and batches_of(sandbox)[0].completed, what="a row is done")
    process.interrupt()
    left = process.finish()
    [job] = [view["id"] for view in machine.json("list")]
    cancelled = machine.run("cancel", job)
    statuses = [batch.status for batch in batches_of(sandbox)]
    wait = machine.run("wait", job, "--timeout", "30")
    return {"left": left, "cancelled": cancelled, "statuses": statuses, "wait": wait, "batches": batches_of(sandbox)}


def before_a_worker_has_seen_it(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    sandbox = new_sandbox()
    machine = new_machine("pending", provider=sandbox)
    job = machine.submit(machine.input(4))
    cancelled = machine.json("cancel", job)
    machine.worker()
    wait = machine.run("wait", job, "--timeout", "30")
    observed = {"machine": machine, "cancelled": cancelled, "wait": wait, "status": machine.json("status", job)}
    return observed | {"calls": sandbox.calls.counts}


def while_the_create_call_is_unanswered(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Nobody knows yet whether there is a batch: it must be looked for, and cancelled."""
    sandbox = new_sandbox(rows_per_second=4)
    machine = new_machine("unanswered", provider=sandbox)
    sandbox.faults.add("drop_after", route="POST /v1/batches", times=1)
    machine.worker()
    job = machine.submit(machine.input(60))
    until(lambda: batches_of(sandbox), what="the batch is made")
    machine.run("cancel", job)
    wait = machine.run("wait", job, "--timeout", "30")
    return {"machine": machine, "job": job, "wait": wait, "status": machine.json("status", job)}


@pytest.fixture(scope="module")
def stories(
    at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: NewSandbox
) -> dict[str, Future[dict[str, Any]]]:
    tellers = (
        while_batches_run,
        before_a_worker_has_seen_it,
        after_its_run_was_left,
        while_the_create_call_is_unanswered,
    )
    return {tell.__name__: at_once.submit(tell, new_machine, new_sandbox) for tell in tellers}


def test_cancel_keeps_the_rows_that_are_done(stories: dict[str, Future[Any]]) -> None:
    """They are paid, so they are in output.jsonl; the others are in errors.jsonl, each once."""
    observed = stories["while_batches_run"].result()
    folder = observed["machine"].folder / "out"
    done = [row["custom_id"] for row in read_rows(folder / "output.jsonl")]
    rest = [row["custom_id"] for row in read_rows(folder / "errors.jsonl")]
    assert done
    assert rest
    assert sorted(done + rest) == sorted(f"r{n}" for n in range(80))
    assert dict.fromkeys(done, 1) == observed["machine"].billed(observed["job"])


def test_wait_on_a_cancelled_job_exits_4(stories: dict[str, Future[Any]]) -> None:
    observed = stories["while_batches_run"].result()
    assert observed["wait"].code == 4, observed["wait"].err
    assert observed["status"]["state"] == "cancelled"


def test_status_is_cancelling_until_the_job_has_ended(stories: dict[str, Future[Any]]) -> None:
    observed = stories["while_batches_run"].result()
    assert (observed["cancelled"]["state"], observed["cancelled"]["ended_at"]) == ("cancelling", None)


def test_cancel_ends_every_batch_at_the_provider(stories: dict[str, Future[Any]]) -> None:
    observed = stories["while_batches_run"].result()
    assert [batch.status for batch in observed["machine"].batches(observed["job"])] == ["cancelled", "cancelled"]
    assert [shard["status"] for shard in observed["status"]["shards"]] == ["cancelled", "cancelled"]


def test_the_counts_of_a_cancelled_job_add_up(stories: dict[str, Future[Any]]) -> None:
    """Rows in == ok + failed + missing."""
    rows = stories["while_batches_run"].result()["status"]["rows"]
    assert 80 == rows["total"] == rows["ok"] + rows["failed"] + rows["missing"]


def test_a_job_cancelled_before_a_worker_has_seen_it_sends_nothing(stories: dict[str, Future[Any]]) -> None:
    observed = stories["before_a_worker_has_seen_it"].result()
    assert (observed["wait"].code, observed["status"]["state"]) == (4, "cancelled"), observed["wait"].err
    assert observed["calls"] == {}
    assert (observed["machine"].folder / "out/job.json").exists()


def test_cancel_finds_a_batch_whose_create_call_was_never_answered(stories: dict[str, Future[Any]]) -> None:
    """No second call, no batch that runs on unseen."""
    observed = stories["while_the_create_call_is_unanswered"].result()
    assert observed["wait"].code == 4, observed["wait"].err
    [batch] = observed["machine"].batches(observed["job"])
    assert batch.status == "cancelled"
    assert [batch.id] == [shard["batch_id"] for shard in observed["status"]["shards"]]


def test_cancel_of_a_run_that_was_left_stops_the_provider_itself(stories: dict[str, Future[Any]]) -> None:
    """It answers when the provider has been told, and `wait` lands the rows that are done."""
    observed = stories["after_its_run_was_left"].result()
    assert (observed["left"].code, observed["cancelled"].code, observed["wait"].code) == (130, 0, 4), observed[
        "wait"
    ].err
    assert observed["statuses"][0] in ("cancelling", "cancelled")
    assert [batch.status for batch in observed["batches"]] == ["cancelled"]
