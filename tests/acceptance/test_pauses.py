"""An account that must rest says so, and goes on at a word."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, until

NewMachine = Callable[..., Machine]
QUOTA = "You exceeded your current quota"


@pytest.fixture(scope="module")
def observed(
    new_machine: NewMachine, new_sandbox: Callable[..., Sandbox], at_once: ThreadPoolExecutor
) -> dict[str, Any]:
    """The provider says once that the account has no money; a person resumes it long before its pause would end."""
    sandbox = new_sandbox()
    sandbox.faults.add("status", route="POST /v1/files", status=429, code="insufficient_quota", message=QUOTA, times=1)
    machine = new_machine("paused", provider=sandbox, BATCHPIPE_ACCOUNT_PAUSE_SECONDS="3000")
    machine.worker()
    before = machine.run("resume")
    job = machine.submit(machine.input(3))
    until(lambda: QUOTA in machine.run("status", job).out, what="status tells of the pause")
    story: Future[Any] = at_once.submit(machine.run, "wait", job, "--timeout", "60")
    return {
        "before": before,
        "status": machine.run("status", job),
        "uploads": sandbox.calls.counts.get("POST /v1/files"),
        "resume": machine.run("resume", "default"),
        "wait": story.result(),
        "unknown": machine.run("resume", "nobody"),
    }


def test_a_pause_says_why_and_what_to_do(observed: dict[str, Any]) -> None:
    """With the provider's own words; meanwhile it is not asked again."""
    assert f"{QUOTA} (fixed? batchpipe resume default)" in observed["status"].out
    assert observed["uploads"] == 1


def test_resume_ends_a_pause_at_once(observed: dict[str, Any]) -> None:
    """The shards that wait for it go on, and the job ends well."""
    assert (observed["resume"].code, observed["resume"].err) == (0, "account 'default' goes on: 1 shard at once\n")
    assert observed["wait"].code == 0, observed["wait"].err


def test_resuming_what_is_not_paused_is_no_error_unless_no_setting_has_it(observed: dict[str, Any]) -> None:
    """It says so; a name that is misspelt leaves the account that was meant paused."""
    assert (observed["before"].code, observed["before"].err) == (0, "account 'default' is not paused\n")
    assert observed["unknown"].code == 1
    assert observed["unknown"].err.startswith("Error: account 'nobody' is not in the settings: set ")
