"""Workers of all kinds, beat, and what `doctor` says."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import API_KEY, Finished, Machine, read_rows
from tests.redis_server import free_port

NewMachine = Callable[..., Machine]
NOBODY = "redis://127.0.0.1:1/0"


def job_of(pool: str, new_machine: NewMachine, *options: str) -> tuple[Machine, Finished]:
    machine = new_machine("-".join((pool, *options)))
    worker = machine.worker("--pool", pool, *(options or ("--concurrency", "2")))
    done = machine.run("wait", machine.submit(machine.input(6), "--max-rows", "2"), "--timeout", "30")
    worker.popen.terminate()
    assert worker.finish(15).code == 0, worker.err
    return machine, done


def lost_message(new_machine: NewMachine) -> Finished:
    """The broker forgets every message; beat tells a worker to sweep."""
    import redis

    machine = new_machine("beat")
    job = machine.submit(machine.input(2))
    assert machine.redis_url is not None
    with redis.Redis.from_url(machine.redis_url) as server:
        assert server.delete("batchpipe") == 1  # the queue
    machine.worker()
    machine.start("beat")
    return machine.run("wait", job, "--timeout", "30")


def doctor(machine: Machine, **env: str | None) -> tuple[int, list[dict[str, str]]]:
    done = machine.run("doctor", "--json", env=env)
    return done.code, json.loads(done.out)


def doctor_with_worker(new_machine: NewMachine) -> tuple[Any, Finished]:
    machine = new_machine("healthy")
    machine.worker()
    return doctor(machine), machine.run("doctor")


def doctor_with_a_job(new_machine: NewMachine) -> tuple[int, list[dict[str, str]]]:
    machine = new_machine("waiting")
    machine.submit(machine.input(1))
    return doctor(machine)


@pytest.fixture(scope="module")
def stories(
    at_once: ThreadPoolExecutor, new_machine: NewMachine, new_sandbox: Callable[..., Sandbox]
) -> dict[str, Any]:
    tell = at_once.submit
    strict = new_sandbox(api_keys=("sk-the-right-one",))
    machine = new_machine("doctor")
    return {
        "prefork": tell(job_of, "prefork", new_machine),
        "autoscale": tell(job_of, "prefork", new_machine, "--autoscale", "3,1"),
        "beat": tell(lost_message, new_machine),
        "healthy": tell(doctor_with_worker, new_machine),
        "no key": tell(doctor, machine, OPENAI_API_KEY=None),
        "wrong key": tell(doctor, machine, OPENAI_BASE_URL=strict.base_url),
        "no provider": tell(doctor, machine, OPENAI_BASE_URL="http://127.0.0.1:1/v1"),
        "no redis": tell(doctor, machine, BATCHPIPE_REDIS_URL=NOBODY),
        "bad setting": tell(doctor, machine, BATCHPIPE_LEASE_SECONDS="soon"),
        "no worker": tell(doctor, machine),
        "jobs wait": tell(doctor_with_a_job, new_machine),
    }


def test_a_worker_of_processes_grows_and_shrinks_with_its_work(stories: dict[str, Future[Any]]) -> None:
    machine, done = stories["autoscale"].result()
    assert done.code == 0, done.err
    assert machine.json("list")[0]["state"] == "succeeded"


def test_a_worker_of_processes_runs_a_job(stories: dict[str, Future[Any]]) -> None:
    """And ends with 0 when it is told to stop."""
    machine, done = stories["prefork"].result()
    assert done.code == 0, done.err
    assert [f"r{n}" for n in range(6)] == [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")]


def test_beat_brings_back_a_job_whose_messages_are_lost(stories: dict[str, Future[Any]]) -> None:
    done = stories["beat"].result()
    assert done.code == 0, done.err


def finding(stories: dict[str, Future[Any]], story: str, what: str) -> tuple[int, dict[str, str]]:
    """The exit code and the worst finding about one thing."""
    code, findings = stories[story].result()
    assert all(set(found) == {"what", "verdict", "detail", "fix"} for found in findings)
    order = ["fail", "warn", "ok"]
    return code, min((f for f in findings if f["what"] == what), key=lambda f: order.index(f["verdict"]))


def test_doctor_finds_nothing_wrong_in_a_healthy_place(stories: dict[str, Future[Any]]) -> None:
    (code, findings), text = stories["healthy"].result()
    assert 0 == code == text.code
    assert {"settings", "redis", "records", "account", "workers"} == {found["what"] for found in findings}
    assert {"settings", "account", "workers"} <= {f["what"] for f in findings if f["verdict"] == "ok"}
    assert "fail" not in {found["verdict"] for found in findings}
    assert API_KEY not in text.out + text.err


@pytest.mark.parametrize(
    ("story", "what", "says"),
    [
        ("no key", "account", "OPENAI_API_KEY"),
        ("wrong key", "account", "refuses the key"),
        ("no provider", "account", "base_url"),
        ("no redis", "redis", "BATCHPIPE_REDIS_URL"),
        ("bad setting", "settings", "BATCHPIPE_LEASE_SECONDS"),
    ],
)
def test_doctor_says_what_is_broken_and_what_to_do(
    stories: dict[str, Future[Any]], story: str, what: str, says: str
) -> None:
    """And exits 1."""
    code, found = finding(stories, story, what)
    assert (code, found["verdict"]) == (1, "fail")
    assert says in found["detail"] + found["fix"]
    assert found["fix"]


def test_doctor_warns_if_no_worker_listens(stories: dict[str, Future[Any]]) -> None:
    """That alone breaks nothing: a worker may come later. If jobs wait for one, it exits 1."""
    for story, wanted in (("no worker", (0, "warn")), ("jobs wait", (1, "fail"))):
        code, found = finding(stories, story, "workers")
        assert (code, found["verdict"]) == wanted
        assert "batchpipe worker" in found["fix"]
    assert found["detail"].endswith("and 1 job waits")


def test_a_worker_with_a_sandbox_needs_no_key(new_machine: NewMachine) -> None:
    """`worker --sandbox`: the account `default` is a server in it, and a second worker uses the same one."""
    machine = new_machine("worker-sandbox")
    port = str(free_port())
    env: dict[str, str | None] = {"BATCHPIPE_SANDBOX_PORT": port, "OPENAI_API_KEY": None, "OPENAI_BASE_URL": None}
    first = machine.start("worker", "--sandbox", "--concurrency", "2", env=env)
    machine.await_ready(first)
    second = machine.start("worker", "--sandbox", "--concurrency", "2", env=env)
    machine.await_ready(second)
    assert f"sandbox on port {port}: no key, no cost" in first.err
    assert "which runs already" in second.err
    job = machine.run("submit", machine.input(3), "-o", "out", env=env).out.strip()
    assert machine.run("wait", job, "--timeout", "60", env=env).code == 0
