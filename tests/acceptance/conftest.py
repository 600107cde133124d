"""Everything real: the command line and workers as processes, a Redis, and a sandbox provider in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.acceptance.user_machine import FAST, Machine
from tests.forkserver import ForkServer
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """A provider that many tests share. Its faults are aimed by `--metadata`, its accounts are asked by job."""
    with Sandbox(**FAST) as server:  # type: ignore[arg-type]
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def forkserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Most of a command's time goes into imports, so its process is forked from one that has done them."""
    server = ForkServer(tmp_path_factory.mktemp("forkserver") / "log", "tests.acceptance.commands")
    yield server
    server.close()


@pytest.fixture(scope="module")
def new_machine(
    tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox, redis_server: RedisServer, forkserver: ForkServer
) -> Iterator[Callable[..., Machine]]:
    """Make a machine: with a database of the tests' Redis, or with `private=True` with a private Redis. Its commands
    are forked; with `fresh=True` each is a new Python, as in a shell.
    """
    made: list[Machine] = []

    def make(
        name: str = "machine",
        *,
        private: bool = False,
        fresh: bool = False,
        provider: Sandbox | None = None,
        **extra: str,
    ) -> Machine:
        folder = tmp_path_factory.mktemp(name)
        url = None if private else redis_server.database()
        made.append(Machine(folder, provider or sandbox, url, **extra))
        made[-1].forkserver = None if fresh else forkserver
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.fixture(scope="module")
def machine(new_machine: Callable[..., Machine]) -> Machine:
    """The machine that the tests of a module share."""
    return new_machine()


@pytest.fixture(scope="module")
def new_sandbox() -> Iterator[Callable[..., Sandbox]]:
    """Start a provider of the test's own."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        made.append(Sandbox(**{**FAST, **options}).start())
        return made[-1]

    yield make
    with ThreadPoolExecutor(len(made) or 1) as pool:  # a call that is still held costs each a second
        list(pool.map(lambda server: server.stop(), made))


@pytest.fixture(scope="module")
def at_once() -> Iterator[ThreadPoolExecutor]:
    """Runs the slow stories of a module side by side; each test then waits for its own."""
    with ThreadPoolExecutor(8) as pool:
        yield pool
