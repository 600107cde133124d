"""What people and machines do to a run: Ctrl-C at any time, the same command twice at once, a frozen worker."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import API_KEY, Finished, Machine, batches_of, read_rows, until

pytestmark = pytest.mark.slow

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]
ROWS = [f"r{number}" for number in range(4)]
#: Seconds after its start at which a run is interrupted: while it loads, starts its Redis, its worker, submits.
MOMENTS = (0.4, 0.8, 1.3)


def interrupted_early(new_machine: NewMachine) -> list[Finished]:
    """Ctrl-C at several moments of the first second, and at the end the same command in peace."""
    machine = new_machine("early", private=True)
    command: list[str | Path] = ["run", machine.input(4), "-o", "out"]
    done = []
    for moment in MOMENTS:
        process = machine.start(*command)
        time.sleep(moment)  # the moment is what is tested, nothing is waited for
        process.interrupt()
        done.append(process.finish())
    done.append(machine.run(*command))
    return done


def twice_at_once(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    sandbox = new_sandbox()
    machine = new_machine("twice", private=True, provider=sandbox)
    command: list[str | Path] = ["run", machine.input(4), "-o", "out"]
    processes = [machine.start(*command) for _ in range(2)]
    done = [process.finish() for process in processes]
    return {"machine": machine, "done": done, "batches": batches_of(sandbox), "billed": sandbox.ledger.billed}


def followed_by_wait(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """Ctrl-C, then `wait`, which has to bring a worker of its own."""
    sandbox = new_sandbox()
    machine = new_machine("wait", private=True, provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    process = machine.start("run", machine.input(4), "-o", "out")
    until(lambda: batches_of(sandbox), what="the batch is made")
    process.interrupt()
    stopped = process.finish()
    sandbox.faults.remove(stuck)
    job = batches_of(sandbox)[0].job
    wait = machine.run("wait", job, "--timeout", "30")
    return {"machine": machine, "stopped": stopped, "wait": wait, "job": job}


def frozen_and_thawed(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    """A worker freezes while its create call is under way, another takes over, then the first one thaws."""
    sandbox = new_sandbox()
    machine = new_machine("frozen", provider=sandbox)
    held = sandbox.faults.add("delay", route="POST /v1/batches", seconds=1.0, times=1)
    sleepy = machine.worker()
    job = machine.submit(machine.input(4))
    until(lambda: held.hits, what="the create call is under way")
    sleepy.popen.send_signal(signal.SIGSTOP)
    machine.worker()
    # a call whose worker vanished may be under way for half a minute; if no look has met its batch, that is waited for
    wait = machine.start("wait", job, "--timeout", "60").finish(70)
    sleepy.popen.send_signal(signal.SIGCONT)
    second = machine.submit(machine.input(4), output="second")
    again = machine.run("wait", second, "--timeout", "30")
    live = [batch for batch in machine.batches(job) if batch.status != "cancelled"]
    return {"machine": machine, "wait": wait, "again": again, "job": job, "live": live}


def with_a_wrong_key(new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Any]:
    sandbox = new_sandbox(api_keys=("sk-another",))
    machine = new_machine("wrong", provider=sandbox)
    source = machine.input(4)
    done, calls = machine.run("run", source, "-o", "out"), dict(sandbox.calls.counts)
    still_wrong = machine.run("run", source, "-o", "out")
    mended = machine.run("run", source, "-o", "out", env={"OPENAI_API_KEY": "sk-another"})
    return {"done": done, "calls": calls, "still wrong": still_wrong, "mended": mended, "jobs": machine.json("list")}


@pytest.fixture(scope="module")
def stories(at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: NewSandbox) -> dict[str, Future[Any]]:
    return {
        "early": at_once.submit(interrupted_early, new_machine),
        "twice": at_once.submit(twice_at_once, new_machine, new_sandbox),
        "wait": at_once.submit(followed_by_wait, new_machine, new_sandbox),
        "frozen": at_once.submit(frozen_and_thawed, new_machine, new_sandbox),
        "wrong": at_once.submit(with_a_wrong_key, new_machine, new_sandbox),
    }


def test_ctrl_c_at_any_moment_is_130_without_a_traceback(stories: dict[str, Future[Any]]) -> None:
    *early, last = stories["early"].result()
    assert [130] * len(MOMENTS) == [done.code for done in early], [done.err for done in early]
    assert [done.err for done in early if "Traceback" in done.err] == []
    assert last.code == 0, last.err


def test_ctrl_c_names_the_job_as_soon_as_there_is_one(stories: dict[str, Future[Any]]) -> None:
    """Who interrupts a run whose job is recorded is told how to follow it."""
    *early, _ = stories["early"].result()
    known = [done.err for done in early if "job_" in done.err]
    assert [err for err in known if "batchpipe wait job_" not in err] == []


def test_the_same_command_several_times_at_once_makes_one_job(stories: dict[str, Future[Any]]) -> None:
    """One works, the others follow; all exit 0."""
    observed = stories["twice"].result()
    assert [done.code for done in observed["done"]] == [0, 0], [done.err for done in observed["done"]]
    assert len(observed["batches"]) == 1
    assert dict.fromkeys(ROWS, 1) == observed["billed"]
    assert [row["custom_id"] for row in read_rows(observed["machine"].folder / "out/output.jsonl")] == ROWS


def test_wait_works_on_the_job_of_an_interrupted_run(stories: dict[str, Future[Any]]) -> None:
    """It needs no other worker, as the message of the run has promised."""
    observed = stories["wait"].result()
    assert observed["stopped"].code == 130
    assert observed["wait"].code == 0, observed["wait"].err
    assert dict.fromkeys(ROWS, 1) == observed["machine"].billed(observed["job"])


def test_a_worker_that_freezes_and_thaws_does_no_harm(stories: dict[str, Future[Any]]) -> None:
    """The job goes on without it, one batch is kept, nothing is paid twice."""
    observed = stories["frozen"].result()
    assert (observed["wait"].code, observed["again"].code) == (0, 0), observed["wait"].err
    assert len(observed["live"]) == 1
    assert dict.fromkeys(ROWS, 1) == observed["machine"].billed(observed["job"])


def test_a_wrong_key_ends_a_run_with_what_to_mend_and_the_same_command_goes_on(stories: dict[str, Future[Any]]) -> None:
    """Nothing is burnt, and the job is kept; it waited for minutes without a word."""
    observed = stories["wrong"].result()
    for done in (observed["done"], observed["still wrong"]):
        assert done.code == 1, done.err
        last = done.err.splitlines()[-1]
        assert last.startswith("Error: the provider refuses account 'default' (invalid_api_key): ")
        assert "OPENAI_API_KEY" in last
        assert last.endswith("is kept: the same command goes on with it")
        assert API_KEY not in done.err
    assert observed["calls"].get("POST /v1/batches", 0) == 0
    assert sum(observed["calls"].values()) <= 2
    assert observed["mended"].code == 0, observed["mended"].err
    assert [job["state"] for job in observed["jobs"]] == ["succeeded"]


def test_a_missing_key_is_said_before_anything_is_recorded(machine: Machine) -> None:
    done = machine.run("run", machine.input(1), "-o", "out", env={"OPENAI_API_KEY": None})
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "OPENAI_API_KEY" in done.err
    assert machine.json("list") == []
