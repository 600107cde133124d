"""What a person can undo, with real commands, a worker, the real SDK and a provider over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, until


@pytest.fixture
def machine(new_machine: Callable[..., Machine], new_sandbox: Callable[..., Sandbox]) -> Machine:
    """A provider of its own, for a key that changes concerns everybody."""
    provider = new_sandbox()
    found = new_machine("verdict", provider=provider, BATCHPIPE_UNSEEN_SECONDS="0")
    found.worker()
    return found


def provider_of(machine: Machine) -> Sandbox:
    assert machine.sandbox is not None
    return machine.sandbox


def test_a_key_of_another_project_is_said_and_what_was_given_up_is_landed(machine: Machine) -> None:
    """status and doctor name it; a cancel ends the job; `land` brings its rows when the right key is back."""
    provider = provider_of(machine)
    stuck = provider.faults.add("stuck")
    job = machine.submit(machine.input(3))
    until(lambda: [batch for batch in machine.batches(job) if batch.status == "in_progress"], what="a batch that runs")
    wrong = provider.faults.add("other_project")
    until(lambda: "does not see batch" in machine.run("status", job).out, what="a status that says it")
    assert "does not see batch" in machine.run("doctor").out
    assert machine.json("status", job)["state"] == "running"
    assert machine.run("cancel", job).code == 0
    ended = machine.run("wait", job)
    assert ended.code == 4, ended.err
    assert machine.json("status", job)["rows"]["missing"] == 3
    provider.faults.remove(wrong)
    provider.faults.remove(stuck)
    (batch,) = machine.batches(job)
    provider.batches.wait(batch.id, "completed")
    assert machine.run("land", job).code == 0
    assert machine.run("wait", job).code == 4
    assert machine.json("status", job)["rows"] == {"total": 3, "ok": 3, "failed": 0, "missing": 0}
    assert len(machine.run("results", job).out.splitlines()) == 3
    again = machine.run("land", job)
    assert (again.code, "nothing to land" in again.err) == (1, True)
    assert provider.ledger.billed_twice() == []


def test_a_cancel_in_the_dashboard_holds_the_job_until_a_person_decides(machine: Machine) -> None:
    """Said in status, list and doctor; `resume JOB` sends the rows again."""
    provider = provider_of(machine)
    stuck = provider.faults.add("stuck")
    job = machine.submit(machine.input(3))
    (batch,) = until(lambda: [one for one in machine.batches(job) if one.status == "in_progress"], what="a batch")
    provider.batches.cancel(batch.id)
    until(lambda: "not by batchpipe" in machine.run("status", job).out, what="a status that says it")
    for command in ("list", "doctor"):
        assert "not by batchpipe" in machine.run(command).out or "held: cancelled_elsewhere" in machine.run(command).out
    assert machine.json("status", job)["held"]["code"] == "cancelled_elsewhere"
    assert len(machine.batches(job)) == 1
    provider.faults.remove(stuck)
    assert machine.run("resume", job).code == 0
    assert machine.run("wait", job).code == 0
    assert machine.run("resume", job).err.strip().endswith("is not held")
    assert provider.ledger.billed_twice() == []


def test_a_file_that_needs_a_moment_and_a_quota_cost_time_only(machine: Machine) -> None:
    """400 from the real server, through the real SDK; `files` says what is there, and makes room."""
    provider = provider_of(machine)
    provider.faults.add("file_not_ready", seconds=3, times=1)
    first = machine.submit(machine.input(2))
    assert machine.run("wait", first).code == 0
    full = provider.faults.add("file_quota", most=1)
    second = machine.submit(machine.input(2, name="more.jsonl"), output="more")
    until(lambda: "no room for another file" in machine.run("status", second).out, what="a status that says it")
    assert "batchpipe's own uploads" in machine.run("status", second).out
    deleted = machine.run("files", "--delete")
    assert (deleted.code, "1 deleted" in deleted.err) == (0, True), deleted
    provider.faults.remove(full)
    assert machine.run("resume").code == 0
    assert machine.run("wait", second).code == 0
