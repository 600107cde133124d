"""Redis servers of the tests. ``new_redis`` is what a fast test takes: a real server, many times faster at scripts than
fakeredis, and fakeredis where no server is installed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis

from batchpipe.local_redis import find_server

#: How many databases a server has. They are used again in turn, so a test may have as many at once.
DATABASES = 256


def needed_server() -> str:
    """The path of a server. Where there is none the test is skipped, but fails where CI is set."""
    if found := find_server():
        return found[1]
    reason = "no redis-server, valkey-server or bundled one was found"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A Redis with many databases, in memory."""

    def __init__(self, folder: Path, *, unix_socket: Path | None = None) -> None:
        self.port = free_port()
        options = {
            "--port": self.port,
            "--bind": "127.0.0.1",
            "--unixsocket": unix_socket or "",
            "--save": "",
            "--appendonly": "no",
            "--databases": DATABASES,
            "--dir": folder,
        }
        command = [needed_server(), *(str(part) for option in options.items() for part in option)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._next = count(1)
        self._await()

    def _await(self) -> None:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "ready to accept connections" in line.lower():
                return
        pytest.fail(f"{self._process.args!r} ended at once: {''.join(said)[-500:]}")

    def next_database(self) -> int:
        """The number of a database that is empty, or was used longest ago; never 0."""
        return next(self._next) % (DATABASES - 1) + 1

    def url(self, database: int) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """The URL of an empty database."""
        return self.url(self.next_database())

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class OneDatabase(redis.Redis):
    """To its user it is a server of its own, as a fakeredis is."""

    def flushall(self, asynchronous: bool = False, **options: Any) -> Any:
        return self.flushdb(asynchronous, **options)


class FastRedis:
    """Empty databases of one server, for the length of a test each."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))  # not pytest's folders: the path of a socket is short
        self.socket = self.folder / "redis.sock"
        self.server = RedisServer(self.folder, unix_socket=self.socket)
        self.pools: dict[int, redis.ConnectionPool] = {}

    def database(self) -> redis.Redis:
        number = self.server.next_database()
        if number not in self.pools:
            self.pools[number] = redis.ConnectionPool(
                connection_class=redis.UnixDomainSocketConnection,
                path=str(self.socket),
                db=number,
                decode_responses=True,
            )
        client = OneDatabase(connection_pool=self.pools[number])
        client.flushdb()
        return client

    def close(self) -> None:
        for pool in self.pools.values():
            pool.disconnect()
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def _fast_redis() -> FastRedis | None:
    return FastRedis() if find_server() else None


def new_redis() -> Any:
    """A client of an empty Redis, which decodes answers."""
    fast = _fast_redis()
    return fast.database() if fast else fakeredis.FakeRedis(decode_responses=True)


def close_fast_redis() -> None:
    """End the server, if one was started."""
    if _fast_redis.cache_info().currsize and (fast := _fast_redis()):
        fast.close()
    _fast_redis.cache_clear()
