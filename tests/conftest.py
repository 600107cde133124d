"""What all tests share: a clean environment, a real Redis beside fakeredis, a clock that is moved, a sandbox."""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis

from batchpipe.config.site import forget_sites
from batchpipe.local_redis import find_server
from batchpipe.sandbox import Sandbox
from batchpipe.store import Connection, Store


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the developer's reaches a test: no variable, no .env, no private Redis of his."""
    for name in list(os.environ):
        if name.startswith(("BATCHPIPE_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHPIPE_HOME", str(tmp_path / "home"))
    forget_sites()
    yield
    forget_sites()


# -- Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis for this run alone. No server on this machine: skipped, but an error where CI is set."""
    found = find_server()
    if found is None:
        reason = "no redis-server, valkey-server or bundled one was found"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    port = _free_port()
    command = [found[1], "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(
        command, cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "ready to accept connections" in line.lower():
                break
        else:
            pytest.fail(f"{found[1]} ended at once: {''.join(said)[-500:]}")
        yield f"redis://127.0.0.1:{port}/0"
        server.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
