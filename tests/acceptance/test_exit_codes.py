"""Exit codes: 0 as asked, 1 failed, 2 usage, 3 some rows not ok, 4 cancelled, 5 not ended in time, 130 interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Finished, Place, batches_of, read_rows, until

NewPlace = Callable[..., Place]


def with_bad_rows(new_place: NewPlace, story: str, custom_id: str) -> tuple[Place, Finished]:
    place = new_place(story)
    assert place.sandbox is not None
    where = {"story": story}
    place.sandbox.faults.add("row_fails", status=400, code="bad_thing", custom_id=custom_id, where=where)
    source = place.input(6)
    return place, place.run("run", source, "-o", "out", "--metadata", f"story={story}", "--max-rows", "3")


def stopped_and_resumed(new_place: NewPlace, number: int) -> dict[str, Any]:
    """A run is stopped while its batches cannot go on; later the same command is given again."""
    place = new_place(f"stopped{number}", private=True)
    assert place.sandbox is not None
    story = f"stopped{number}"
    stuck = place.sandbox.faults.add("stuck", where={"story": story})
    command: list[str | Path] = ["run", place.input(6), "-o", "out", "--metadata", f"story={story}", "--max-rows", "3"]

    def ours() -> list[str]:
        batches = batches_of(place.sandbox) if place.sandbox else []
        return [batch.id for batch in batches if (batch.metadata or {}).get("story") == story]

    process = place.start(*command)
    until(lambda: len(ours()) == 2, what="both batches are created")
    process.popen.send_signal(number)
    told: dict[str, Any] = {"place": place, "stopped": process.finish(), "batches": ours()}
    until(lambda: not place.leftovers(), 15, "what the run has started is gone")
    place.sandbox.faults.remove(stuck)
    told |= {"resumed": place.run(*command), "batches_after": ours(), "job": place.json("list")[0]}
    return told


def cancelled_by_another(new_place: NewPlace) -> dict[str, Any]:
    """A run whose job somebody else cancels; and what `wait` then says of it."""
    place = new_place("cancelled")
    assert place.sandbox is not None
    place.sandbox.faults.add("stuck", where={"story": "cancelled"})
    process = place.start("run", place.input(4), "-o", "out", "--metadata", "story=cancelled")
    job = until(lambda: next((word for word in process.err.split() if word.startswith("job_")), None))
    until(lambda: place.batches(job), what="its batch is created")
    cancel = place.run("cancel", job)
    run = process.finish()
    return {"run": run, "cancel": cancel, "wait": place.run("wait", job), "again": place.run("cancel", job)}


@pytest.fixture(scope="module")
def stories(at_once: ThreadPoolExecutor, new_place: NewPlace) -> dict[str, Future[Any]]:
    return {
        "interrupted": at_once.submit(stopped_and_resumed, new_place, signal.SIGINT),
        "cancelled": at_once.submit(cancelled_by_another, new_place),
        "partial": at_once.submit(with_bad_rows, new_place, "partial", "^r3$"),
        "failed": at_once.submit(with_bad_rows, new_place, "failed", "."),
    }


def test_3_if_some_rows_are_not_ok(stories: dict[str, Future[Any]]) -> None:
    """They stand in errors.jsonl with the provider's answer; the others in output.jsonl."""
    place, done = stories["partial"].result()
    assert done.code == 3, done.err
    assert "5 of 6 rows ok, 1 failed" in done.err
    [row] = read_rows(place.folder / "out/errors.jsonl")
    assert {"custom_id", "outcome", "attempts", "response", "error"} == row.keys()
    assert (row["custom_id"], row["outcome"], row["attempts"]) == ("r3", "failed", 1)
    assert (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) == (400, "bad_thing")
    assert [r["custom_id"] for r in read_rows(place.folder / "out/output.jsonl")] == ["r0", "r1", "r2", "r4", "r5"]


def test_1_if_no_row_is_ok_though_every_batch_is_completed(stories: dict[str, Future[Any]]) -> None:
    place, done = stories["failed"].result()
    assert done.code == 1, done.err
    assert [f"r{n}" for n in range(6)] == [row["custom_id"] for row in read_rows(place.folder / "out/errors.jsonl")]
    job = place.json("list")[0]
    assert (job["state"], job["error"]["code"]) == ("failed", "no_row_ok")
    assert {"completed"} == {batch.status for batch in place.batches(job["id"])}


def test_130_if_it_is_interrupted_and_it_says_how_to_go_on(stories: dict[str, Future[Any]]) -> None:
    """Ctrl-C stops the following, not the job."""
    told = stories["interrupted"].result()
    assert (told["stopped"].code, told["stopped"].out) == (130, ""), told["stopped"].err
    assert f"batchpipe wait {told['job']['id']}" in told["stopped"].err
    assert f"batchpipe cancel {told['job']['id']}" in told["stopped"].err
    assert "Traceback" not in told["stopped"].err


def test_the_same_command_resumes_what_was_interrupted(stories: dict[str, Future[Any]]) -> None:
    """The same job, the same batches, and nothing is paid twice."""
    told = stories["interrupted"].result()
    assert told["resumed"].code == 0, told["resumed"].err
    assert told["batches"] == told["batches_after"]
    assert told["job"]["id"] in told["stopped"].err
    assert dict.fromkeys((f"r{n}" for n in range(6)), 1) == told["place"].billed(told["job"]["id"])


def test_4_if_the_job_is_cancelled_while_it_is_followed(stories: dict[str, Future[Any]]) -> None:
    told = stories["cancelled"].result()
    assert told["run"].code == 4, told["run"].err
    assert told["wait"].code == 4, told["wait"].err


def test_0_of_cancel_also_when_there_is_nothing_left_to_cancel(stories: dict[str, Future[Any]]) -> None:
    """Cancelling twice is no error."""
    told = stories["cancelled"].result()
    assert (told["cancel"].code, told["cancel"].out) == (0, ""), told["cancel"].err
    assert told["again"].code == 0, told["again"].err


def test_5_if_the_job_has_not_ended_when_the_time_is_up(place: Place) -> None:
    """No worker is there, so it cannot end."""
    job = place.submit(place.input(2))
    done = place.run("wait", job, "--timeout", "0.3")
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
def test_2_of_wrong_usage(place: Place, command: list[str]) -> None:
    done = place.run(*command)
    assert (done.code, done.out) == (2, "")
    assert "Error:" in done.err
    assert "Traceback" not in done.err


def test_1_if_the_command_could_not_be_carried_out(new_place: NewPlace, sandbox: Sandbox) -> None:
    """Redis does not answer: one line, no traceback."""
    place = new_place(BATCHPIPE_REDIS_URL="redis://127.0.0.1:1/0")
    done = place.run("list")
    assert (done.code, done.out) == (1, "")
    [line] = done.err.splitlines()
    assert line.startswith("Error:")
    assert "Redis" in line
