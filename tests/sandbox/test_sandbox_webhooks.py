"""Webhooks of the sandbox: signed as OpenAI signs, sent until they are taken; and what may go wrong with them."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from batchpipe.sandbox import Sandbox
from tests.sandbox.conftest import Api, chat_row

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Receiver:
    """A site that takes webhooks; ``statuses`` are its next answers, then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.times: list[float] = []  #: when each was taken, by the monotonic clock
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.times.append(time.monotonic())
                outer.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = outer.statuses.pop(0) if outer.statuses else 200
                self.send_response(status)
                if status == 307:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhooks"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, count: int) -> list[Any]:
        """The events, as the real SDK reads them."""
        until(lambda: len(self.taken) >= count)
        return [unwrap(headers, body) for headers, body in self.taken]


def unwrap(headers: dict[str, str], body: bytes, secret: str = SECRET) -> Any:
    client = OpenAI(api_key="test", base_url="http://127.0.0.1:9")
    return client.webhooks.unwrap(body, headers, secret=secret)


def until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def api(receiver: Receiver) -> Iterator[Api]:
    with Sandbox(validating_seconds=0, finalizing_seconds=0, webhook_url=receiver.url, webhook_secret=SECRET) as server:
        yield Api(server)


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
def test_each_end_is_told_once_and_the_sdk_takes_it(api: Api, receiver: Receiver, status: str) -> None:
    """The event names the batch, and that shows its end by then."""
    api.sandbox.faults.add("stuck")
    batch = api.create([chat_row()])
    api.sandbox.batches.end(batch.id, status)
    event = receiver.wait(1)[0]
    assert (event.type, event.data.id, event.object) == (f"batch.{status}", batch.id, "event")
    assert api.client.batches.retrieve(batch.id).status == status
    time.sleep(0.1)
    assert len(receiver.taken) == 1


def test_another_secret_does_not_fit(api: Api, receiver: Receiver) -> None:
    """Nor does the signature of another body."""
    api.run([chat_row()])
    receiver.wait(1)
    headers, body = receiver.taken[0]
    for wrong in (lambda: unwrap(headers, body, "whsec_" + "A" * 44), lambda: unwrap(headers, body + b" ")):
        with pytest.raises(InvalidWebhookSignatureError):
            wrong()


def test_it_is_sent_again_under_its_id_until_it_is_taken(api: Api, receiver: Receiver) -> None:
    """A redirect is no answer. Each try is signed anew."""
    receiver.statuses = [503, 307]
    api.run([chat_row()])
    receiver.wait(3)
    assert len({headers["webhook-id"] for headers, _ in receiver.taken}) == 1
    until(lambda: len(api.sandbox.webhooks.deliveries) == 3)
    assert [delivery.status for delivery in api.sandbox.webhooks.deliveries] == [503, 307, 200]


def test_faults_lose_double_delay_and_forge(api: Api, receiver: Receiver) -> None:
    """Each hits the batches that it is aimed at."""
    faults, late = api.sandbox.faults, 0.3
    for kind, more in {"lost": {}, "twice": {"seconds": 0.1}, "delay": {"seconds": late}, "forged": {}}.items():
        faults.add(f"webhook_{kind}", where={"with": kind}, **more)
    begun = time.monotonic()
    made = {kind: api.create([chat_row()], metadata={"with": kind}).id for kind in ("lost", "delay", "twice")}
    came = Counter(event.data.id for event in receiver.wait(3))
    assert came == {made["twice"]: 2, made["delay"]: 1}
    # in which order they come is up to the machine: only that the late one is not early can be told
    delayed = next(
        at for (_, body), at in zip(receiver.taken, receiver.times, strict=True) if made["delay"] in str(body)
    )
    assert delayed - begun >= late
    api.run([chat_row()], metadata={"with": "forged"})
    until(lambda: len(receiver.taken) >= 4)
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(*receiver.taken[3])


def test_a_webhook_may_come_before_a_read_shows_the_end(receiver: Receiver) -> None:
    """Once, all the same."""
    with Sandbox(
        validating_seconds=0, finalizing_seconds=100, webhook_url=receiver.url, webhook_secret=SECRET
    ) as server:
        api = Api(server)
        server.faults.add("webhook_early")
        batch = api.create([chat_row()])
        receiver.wait(1)
        assert api.client.batches.retrieve(batch.id).status == "finalizing"
        server.clock.advance(101)
        server.batches.wait(batch.id)
        time.sleep(0.1)
        assert len(receiver.taken) == 1


@pytest.mark.parametrize("secret", [None, "", "secret", "whsec_", "whsec_%%%"])
def test_a_url_needs_a_secret(secret: str | None) -> None:
    """Else nobody could check who it is from."""
    with pytest.raises(ValueError, match="whsec_"):
        Sandbox(webhook_url="http://127.0.0.1:1/", webhook_secret=secret)
