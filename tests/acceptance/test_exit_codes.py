"""Exit codes: 0 as asked, 1 failed, 2 usage, 3 some rows not ok, 4 cancelled, 5 not ended in time, 130 interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Finished, Machine, batches_of, read_rows, until

NewMachine = Callable[..., Machine]


def with_bad_rows(new_machine: NewMachine, story: str, custom_id: str) -> tuple[Machine, Finished]:
    machine = new_machine(story)
    assert machine.sandbox is not None
    where = {"story": story}
    machine.sandbox.faults.add("row_fails", status=400, code="bad_thing", custom_id=custom_id, where=where)
    source = machine.input(6)
    return machine, machine.run("run", source, "-o", "out", "--metadata", f"story={story}", "--max-rows", "3")


def stopped_and_resumed(new_machine: NewMachine, number: int) -> dict[str, Any]:
    """A run is stopped while its batches cannot go on; later the same command is given again."""
    machine = new_machine(f"stopped{number}", private=True)
    assert machine.sandbox is not None
    story = f"stopped{number}"
    stuck = machine.sandbox.faults.add("stuck", where={"story": story})
    command: list[str | Path] = [
        "run",
        machine.input(6),
        "-o",
        "out",
        "--metadata",
        f"story={story}",
        "--max-rows",
        "3",
    ]

    def ours() -> list[str]:
        batches = batches_of(machine.sandbox) if machine.sandbox else []
        return [batch.id for batch in batches if (batch.metadata or {}).get("story") == story]

    process = machine.start(*command)
    until(lambda: len(ours()) == 2, what="both batches are created")
    process.popen.send_signal(number)
    observed: dict[str, Any] = {"machine": machine, "stopped": process.finish(), "batches": ours()}
    until(lambda: not machine.leftovers(), 15, "what the run has started is gone")
    machine.sandbox.faults.remove(stuck)
    observed |= {"resumed": machine.run(*command), "batches_after": ours(), "job": machine.json("list")[0]}
    return observed


def cancelled_by_another(new_machine: NewMachine) -> dict[str, Any]:
    """A run whose job somebody else cancels; and what `wait` then says of it."""
    machine = new_machine("cancelled")
    assert machine.sandbox is not None
    machine.sandbox.faults.add("stuck", where={"story": "cancelled"})
    process = machine.start("run", machine.input(4), "-o", "out", "--metadata", "story=cancelled")
    job = until(lambda: next((word for word in process.err.split() if word.startswith("job_")), None))
    until(lambda: machine.batches(job), what="its batch is created")
    cancel = machine.run("cancel", job)
    run = process.finish()
    return {"run": run, "cancel": cancel, "wait": machine.run("wait", job), "again": machine.run("cancel", job)}


@pytest.fixture(scope="module")
def stories(at_once: ThreadPoolExecutor, new_machine: NewMachine) -> dict[str, Future[Any]]:
    return {
        "interrupted": at_once.submit(stopped_and_resumed, new_machine, signal.SIGINT),
        "cancelled": at_once.submit(cancelled_by_another, new_machine),
        "partial": at_once.submit(with_bad_rows, new_machine, "partial", "^r3$"),
        "failed": at_once.submit(with_bad_rows, new_machine, "failed", "."),
    }


def test_3_if_some_rows_are_not_ok(stories: dict[str, Future[Any]]) -> None:
    """They stand in errors.jsonl with the provider's answer; the others in output.jsonl."""
    machine, done = stories["partial"].result()
    assert done.code == 3, done.err
    assert "5 of 6 rows ok, 1 failed" in done.err
    [row] = read_rows(machine.folder / "out/errors.jsonl")
    assert {"custom_id", "outcome", "attempts", "response", "error"} == row.keys()
    assert (row["custom_id"], row["outcome"], row["attempts"]) == ("r3", "failed", 1)
    assert (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) == (400, "bad_thing")
    assert [r["custom_id"] for r in read_rows(machine.folder / "out/output.jsonl")] == ["r0", "r1", "r2", "r4", "r5"]


def test_1_if_no_row_is_ok_though_every_batch_is_completed(stories: dict[str, Future[Any]]) -> None:
    machine, done = stories["failed"].result()
    assert done.code == 1, done.err
    assert [f"r{n}" for n in range(6)] == [row["custom_id"] for row in read_rows(machine.folder / "out/errors.jsonl")]
    job = machine.json("list")[0]
    assert (job["state"], job["error"]["code"]) == ("failed", "no_row_ok")
    assert {"completed"} == {batch.status for batch in machine.batches(job["id"])}


def test_130_if_it_is_interrupted_and_it_says_how_to_go_on(stories: dict[str, Future[Any]]) -> None:
    """Ctrl-C stops the following, not the job."""
    observed = stories["interrupted"].result()
    assert (observed["stopped"].code, observed["stopped"].out) == (130, ""), observed["stopped"].err
    assert f"batchpipe wait {observed['job']['id']}" in observed["stopped"].err
    assert f"batchpipe cancel {observed['job']['id']}" in observed["stopped"].err
    assert "Traceback" not in observed["stopped"].err


def test_the_same_command_resumes_what_was_interrupted(stories: dict[str, Future[Any]]) -> None:
    """The same job, the same batches, and nothing is paid twice."""
    observed = stories["interrupted"].result()
    assert observed["resumed"].code == 0, observed["resumed"].err
    assert observed["batches"] == observed["batches_after"]
    assert observed["job"]["id"] in observed["stopped"].err
    assert dict.fromkeys((f"r{n}" for n in range(6)), 1) == observed["machine"].billed(observed["job"]["id"])


def test_4_if_the_job_is_cancelled_while_it_is_followed(stories: dict[str, Future[Any]]) -> None:
    observed = stories["cancelled"].result()
    assert observed["run"].code == 4, observed["run"].err
    assert observed["wait"].code == 4, observed["wait"].err


def test_0_of_cancel_also_when_there_is_nothing_left_to_cancel(stories: dict[str, Future[Any]]) -> None:
    """Cancelling twice is no error."""
    observed = stories["cancelled"].result()
    assert (observed["cancel"].code, observed["cancel"].out) == (0, ""), observed["cancel"].err
    assert observed["again"].code == 0, observed["again"].err


def test_5_if_the_job_has_not_ended_when_the_time_is_up(machine: Machine) -> None:
    """No worker is there, so it cannot end."""
    job = machine.submit(machine.input(2))
    done = machine.run("wait", job, "--timeout", "0.3")
    assert (done.code, done.out) == (5, "")
    assert job in done.err


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["run", "input.jsonl"], id="no output"),
        pytest.param(["run", "input.jsonl", "-o", "out", "--metadata", "novalue"], id="metadata without ="),
        pytest.param(["run", "input.jsonl", "-o", "out", "--extra", "a={"], id="extra that is no JSON"),
        pytest.param(["run", "input.jsonl", "-o", "out", "--max-rows", "0"], id="max-rows 0"),
        pytest.param(["run", "input.jsonl", "-o", "out", "--sandbox", "--account", "x"], id="sandbox and account"),
        pytest.param(["submit", "input.jsonl", "-o", "out", "--again"], id="an option of run only"),
        pytest.param(["list", "--state", "asleep"], id="unknown state"),
        pytest.param(["dance"], id="unknown command"),
    ],
)
def test_2_of_wrong_usage(machine: Machine, command: list[str]) -> None:
    done = machine.run(*command)
    assert (done.code, done.out) == (2, "")
    assert "Error:" in done.err
    assert "Traceback" not in done.err


def test_1_if_the_command_could_not_be_carried_out(new_machine: NewMachine, sandbox: Sandbox) -> None:
    """Redis does not answer: one line, no traceback."""
    machine = new_machine(BATCHPIPE_REDIS_URL="redis://127.0.0.1:1/0")
    done = machine.run("list")
    assert (done.code, done.out) == (1, "")
    [line] = done.err.splitlines()
    assert line.startswith("Error:")
    assert "Redis" in line
