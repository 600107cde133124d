"""What all tests share: a clean environment, a real Redis beside fakeredis, a clock that is moved, a sandbox."""

from __future__ import annotations

import os
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis
from celery import _state as celery_state

import batchpipe.testing.pump
from batchpipe.config.site import forget_sites
from batchpipe.sandbox import Sandbox
from batchpipe.store import Connection, Store
from tests.redis_server import RedisServer, close_fast_redis, new_redis


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the developer's reaches a test: no variable, no .env, no private Redis of his. Nor does the Celery
    app that another test has made current.
    """
    for name in list(os.environ):
        if name.startswith(("BATCHPIPE_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHPIPE_HOME", str(tmp_path / "home"))
    forget_sites()
    current_app = celery_state._tls.current_app
    yield
    celery_state._set_current_app(current_app)
    forget_sites()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """No test cuts the power, so in this process nothing need be safe on disk; but a handle must be open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        patch.setattr(os, "fdatasync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_names() -> Iterator[None]:
    """No name below ``invalid`` exists (RFC 6761); without a network a look-up may take 20 seconds to say so."""
    look_up = socket.getaddrinfo

    def answer(host: Any, *how: Any, **more: Any) -> Any:
        if isinstance(host, str) and host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *how, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", answer)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test speaks TLS to a stranger, and each of their HTTP clients would read all authorities of this machine."""
    authorities = ssl.create_default_context().get_ca_certs(binary_form=True)
    with pytest.MonkeyPatch.context() as patch:
        if authorities:
            path = tmp_path_factory.mktemp("tls") / "one.pem"
            path.write_text(ssl.DER_cert_to_PEM_cert(authorities[0]))
            patch.setenv("SSL_CERT_FILE", str(path))
        yield


# -- Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def fast_redis() -> Iterator[None]:
    """Where a server is installed, a Pump runs on it, not on fakeredis; tests do so by ``new_redis``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchpipe.testing.pump, "new_redis", new_redis)
        yield
    close_fast_redis()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis for this run alone. No server on this machine: skipped, but an error where CI is set."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.url(0)
    server.close()


class MovableClock:
    """Seconds added to Redis' clock: tests move it instead of waiting."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return self.offset

    def advance(self, seconds: float) -> None:
        self.offset += seconds


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def prefix() -> str:
    """Keys of this test alone, in one slot: a Redis is never flushed."""
    return f"{{test-{uuid.uuid4().hex[:12]}}}:"


@pytest.fixture(params=["fakeredis", "redis"])
def store(request: pytest.FixtureRequest, clock: MovableClock, prefix: str) -> Iterator[Store]:
    """A store with leases of 60 s on either Redis, whose time is moved by ``clock``."""
    client: Any
    if request.param == "fakeredis":
        client = fakeredis.FakeRedis(decode_responses=True)
    else:
        client = redis.Redis.from_url(request.getfixturevalue("redis_url"), decode_responses=True)
    with client:
        yield Store(Connection(client, prefix=prefix, lease_seconds=60, ttl_seconds=3600, skew=clock))


# -- the provider --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[Sandbox]:
    with Sandbox(validating_seconds=0.02, finalizing_seconds=0.01, cancelling_seconds=0.02) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox server, emptied."""
    running_sandbox.reset()
    yield running_sandbox
    running_sandbox.faults.clear()


# -- rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat_rows() -> Callable[..., list[dict[str, object]]]:
    """``chat_rows(3)``: requests r0, r1, r2."""

    def make(count: int, *, model: str = "gpt-4o-mini", start: int = 0) -> list[dict[str, object]]:
        return [
            {
                "custom_id": f"r{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": model, "messages": [{"role": "user", "content": f"Tell of {number}"}]},
            }
            for number in range(start, start + count)
        ]

    return make
