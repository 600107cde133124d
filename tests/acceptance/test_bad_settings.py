"""Settings and arguments that cannot work: one line that names them, no traceback, nothing sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.user_machine import Machine


@pytest.fixture(scope="module")
def machine(new_machine: Callable[..., Machine]) -> Machine:
    return new_machine("settings")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"BATCHPIPE_REDIS_URL": "foo"}, "BATCHPIPE_REDIS_URL"),
        ({"BATCHPIPE_REDIS_URL": "redis://h:secret-word/0"}, "BATCHPIPE_REDIS_URL"),
        (
            {"BATCHPIPE_REDIS_URL": "redis://127.0.0.1:1/0"},
            "Redis at 127.0.0.1:1 cannot be reached: Connection refused; ",
        ),
        (
            {"BATCHPIPE_REDIS_URL": "redis://:secret-word@127.0.0.1:1/0"},
            "start it (redis-server), or set BATCHPIPE_REDIS_URL",
        ),
        ({"BATCHPIPE_REDIS_URL": "unix:///nowhere/redis.sock"}, "Redis at /nowhere/redis.sock cannot be reached: "),
        (
            {"BATCHPIPE_REDIS_URL": "redis://no-such-host.invalid/0"},
            "Redis at no-such-host.invalid:6379 cannot be reached: ",
        ),
        ({"BATCHPIPE_BROKER_URL": "foo://x"}, "BATCHPIPE_BROKER_URL"),
        ({"BATCHPIPE_LEASE_SECONDS": "inf"}, "BATCHPIPE_LEASE_SECONDS"),
    ],
)
def test_a_setting_that_cannot_work_is_named(machine: Machine, settings: dict[str, str], words: str) -> None:
    done = machine.run("submit", machine.input(1), "-o", "out", env=settings)
    assert (done.code, done.out) == (1, "")
    assert words in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert "secret-word" not in done.err


def test_a_broker_that_is_not_there_is_said_by_a_submit_that_is_recorded(machine: Machine) -> None:
    """A sweep sends its message later; a person should hear of it now, and that no worker has noted itself."""
    done = machine.run(
        "submit", machine.input(1), "-o", "later", env={"BATCHPIPE_BROKER_URL": "redis://:word@127.0.0.1:1/0"}
    )
    assert done.code == 0
    assert done.out.startswith("job_")
    assert done.err == (
        "Warning: not sent to the workers yet, a sweep will do that: the broker at 127.0.0.1:1 cannot be reached: "
        "Connection refused; start it, or correct its address: BATCHPIPE_BROKER_URL, else BATCHPIPE_REDIS_URL\n"
        "Warning: no worker listens on queue batchpipe; "
        "start one: `batchpipe worker` (`batchpipe run` brings its own)\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "job_\udcff"],
        ["submit", "x.jsonl", "-o", ""],
        ["submit", "x.jsonl", "-o", "out", "--extra", "a=NaN"],
        ["submit", "x.jsonl", "-o", "out", "--metadata", "novalue"],
        ["submit", "x.jsonl", "-o", "out", "--account", "sandbox"],
        ["worker", "--loglevel", "nosuch"],
    ],
    ids=lambda arguments: arguments[-1].encode("ascii", "replace").decode() or "empty",
)
def test_an_argument_that_cannot_work_is_a_usage_error(machine: Machine, arguments: list[str]) -> None:
    done = machine.run(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "Error: " in done.err


def test_an_output_that_nothing_can_make_is_refused(machine: Machine) -> None:
    """Such as one in /proc; it neither hangs nor sends anything."""
    done = machine.run("run", machine.input(2), "-o", "/proc/batchpipe-out")
    assert done.code == 1
    assert "Error: output: /proc/batchpipe-out" in done.err


def test_results_that_were_deleted_are_not_reported_as_there(machine: Machine) -> None:
    """The rows are paid; sending them again is for the user to say."""
    command: list[str | Path] = ["run", machine.input(2, "gone.jsonl"), "-o", "gone"]
    assert machine.run(*command).code == 0
    (machine.folder / "gone" / "output.jsonl").unlink()
    done = machine.run(*command)
    assert done.code == 1
    assert "--again" in done.err
