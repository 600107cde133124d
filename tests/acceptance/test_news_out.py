"""News out, with workers and commands that share a Redis and know different things."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.acceptance.user_machine import Machine, until

NewMachine = Callable[..., Machine]
SECRET = "whsec_" + base64.b64encode(b"n" * 24).decode()
#: What the workers know, and a laptop does not.
ABLE = {"BATCHPIPE_NOTIFY_SECRET": SECRET, "BATCHPIPE_ALLOWED_HOSTS": "127.0.0.1"}


@dataclass
class Receiver:
    """Takes what is told; as long as it hangs it answers nothing."""

    url: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    found.hanging.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.hanging.wait(30)
            found.told.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield found
    found.hanging.set()
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_news_that_a_worker_and_a_laptop_cannot_send_waits_for_a_worker_that_can(
    new_machine: NewMachine, receiver: Receiver
) -> None:
    """They lack the secret: that counts as no try, whatever sweeps, and delays nobody."""
    machine = new_machine("mixed", BATCHPIPE_ALLOWED_HOSTS="127.0.0.1")
    lacking = machine.worker()
    job = machine.submit(machine.input(3), "--notify", receiver.url)
    assert machine.run("wait", job, "--timeout", "60").code == 0
    for _ in range(3):
        machine.run("sweep")
    [waiting] = until(lambda: machine.json("notifications"), what="the news is recorded")
    assert (waiting["tries"], waiting["dead"], receiver.told) == (0, False, [])
    assert "NOTIFY_SECRET is not set here" in lacking.err

    machine.start("worker", env=ABLE)
    until(lambda: receiver.told, what="the news is told")
    assert (receiver.told[0]["type"], receiver.told[0]["data"]["id"]) == ("job.ended", job)
    until(lambda: machine.json("notifications") == [], what="the news is done with")


@pytest.mark.slow
def test_a_run_says_at_its_end_that_nobody_was_told(new_machine: NewMachine) -> None:
    """In one line, with the reason; it looked as if all was well."""
    machine = new_machine("typo", BATCHPIPE_NOTIFY="nobody")
    done = machine.run("run", str(machine.input(2)), "-o", "out", "--sandbox")
    assert done.code == 0
    why = "there is no target 'nobody' in the settings here"
    assert f"note: the notification to nobody is not delivered: {why}; see batchpipe notifications" in done.err
    assert why in machine.run("notifications").out


@pytest.mark.slow
def test_without_a_worker_a_sweep_sends_and_waits_a_little_only(new_machine: NewMachine, receiver: Receiver) -> None:
    """As with cron. A receiver that hangs gets its ten seconds beside the sweep, and no more."""
    machine = new_machine("cron", **ABLE)
    receiver.hanging.clear()
    worker = machine.worker()
    job = machine.submit(machine.input(3), "--notify", receiver.url)
    assert machine.run("wait", job, "--timeout", "60").code == 0
    worker.kill()
    until(lambda: machine.json("notifications"), what="the news is recorded")
    receiver.hanging.set()

    def swept() -> bool:
        begun = time.monotonic()
        assert machine.run("sweep").code == 0
        assert time.monotonic() - begun < 20
        return bool(receiver.told)

    until(swept, seconds=90, every=1.0, what="the news is told")
    assert receiver.told[0]["data"]["id"] == job
