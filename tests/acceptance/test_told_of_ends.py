"""Webhooks end to end: the sandbox sends, `batchpipe webhooks` receives, a worker fetches; polls take ten minutes."""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, Process, until

NewMachine = Callable[..., Machine]
NewSandbox = Callable[..., Sandbox]
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
NO_POLLS = {"BATCHPIPE_POLL_MIN_SECONDS": "600", "BATCHPIPE_POLL_MAX_SECONDS": "600"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """A machine with a worker, that is told of ends and would not look by itself."""

    def __init__(self, new_machine: NewMachine, new_sandbox: NewSandbox, name: str, **more: str) -> None:
        self.port = free_port()
        url = f"http://127.0.0.1:{self.port}/webhooks"
        self.sandbox = new_sandbox(webhook_url=url, webhook_secret=SECRET)
        self.machine = new_machine(
            name,
            provider=self.sandbox,
            BATCHPIPE_ACCOUNTS__DEFAULT__WEBHOOK_SECRET=SECRET,
            **NO_POLLS,
            **more,
        )
        self.machine.worker()

    def receive(self) -> Process:
        process = self.machine.start("webhooks", "--port", str(self.port))
        until(lambda: "webhooks at" in process.err or not process.running, what="webhooks are received")
        assert process.running, process.err
        return process

    def submit(self, rows: int = 3) -> str:
        return self.machine.submit(self.machine.input(rows), output=f"out{time.monotonic_ns()}")

    def wait(self, job: str) -> float:
        """Seconds until the job has ended well."""
        begun = time.monotonic()
        done = self.machine.run("wait", job, "--timeout", "60")
        assert done.code == 0, done.err
        return time.monotonic() - begun


@pytest.fixture(scope="module")
def site(new_machine: NewMachine, new_sandbox: NewSandbox) -> Site:
    return Site(new_machine, new_sandbox, "told")


@pytest.mark.slow
def test_a_job_ends_at_once_where_polls_would_take_ten_minutes(site: Site) -> None:
    """And its log has nothing of the secret."""
    process = site.receive()
    site.wait(site.submit())
    assert re.search(rf"webhooks at http://127\.0\.0\.1:{site.port}/webhooks, of default \(1 secret\)\n", process.err)
    assert SECRET not in process.err + process.out
    process.popen.terminate()
    assert process.finish(10).code == 0


@pytest.mark.slow
def test_what_was_sent_while_nobody_listened_is_sent_again(site: Site) -> None:
    """The sender repeats it until it is taken."""
    job = site.submit()
    until(lambda: len(site.sandbox.webhooks.deliveries) > 2, what="tries without an answer")
    process = site.receive()
    site.wait(job)
    process.popen.terminate()
    process.finish(10)


@pytest.mark.slow
def test_a_webhook_that_is_quicker_than_the_answer_to_the_create_is_not_lost(site: Site) -> None:
    """Nor one that comes twice, or before a read shows the end."""
    faults: Any = site.sandbox.faults
    faults.add("delay_after", route="POST /v1/batches", seconds=2.0, times=1)
    faults.add("webhook_twice", seconds=0.1)
    process = site.receive()
    site.wait(site.submit())
    faults.clear()
    faults.add("webhook_early")
    site.wait(site.submit())
    faults.clear()
    process.popen.terminate()
    process.finish(10)


@pytest.mark.slow
def test_a_receiver_that_is_killed_after_it_recorded_loses_nothing(site: Site) -> None:
    """The due time that it wrote brings the message: here the process cannot publish at all."""
    process = site.machine.start(
        "webhooks", "--port", str(site.port), env={"BATCHPIPE_BROKER_URL": "redis://127.0.0.1:1/0"}
    )
    until(lambda: "webhooks at" in process.err, what="webhooks are received")
    job = site.submit()
    site.wait(job)
    process.kill()


def test_without_a_secret_the_command_says_what_to_set(new_machine: NewMachine) -> None:
    """In one line."""
    done = new_machine("untold").run("webhooks", "--port", "0")
    assert done.code == 1
    assert done.err.startswith("Error: no account has a webhook secret: set BATCHPIPE_ACCOUNTS__NAME__WEBHOOK_SECRET")
    assert "Traceback" not in done.err
