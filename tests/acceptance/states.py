"""A Redis in each of the states in which it refuses, and a way to it that leads elsewhere after a failover."""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from batchpipe.local_redis import find_server
from tests.acceptance.user_machine import until
from tests.redis_server import free_port


class LoneRedis:
    """A Redis of one's own, whose state may be changed."""

    def __init__(self, folder: Path, program: Path | str | None = None, /, **options: object) -> None:
        found = ("", str(program)) if program else find_server()
        assert found is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        given = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": folder, **options}
        command = [found[1], *(str(part) for name, value in given.items() for part in (f"--{name}", value))]
        with (folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.client: Any = redis.Redis(port=self.port, decode_responses=True)
        until(self._answers, what="the Redis answers")

    def _answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def set(self, name: str, value: object) -> None:
        self.client.config_set(name, value)

    def close(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()


class Road:
    """What a name or virtual address is: new connections lead to ``port``; those that are there stay where they lead.

    While ``answer`` is set, every command is answered with it as an error.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.answer: str | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                self._open += [client, server]
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if asks and self.answer is not None:
                    source.sendall(f"-{self.answer}\r\n".encode() * max(_commands(data), 1))
                else:
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._open:
            end.close()


def _commands(data: bytes) -> int:
    """How many commands begin in this: their lines begin with ``*``, which none of our arguments does."""
    return sum(line[:1] == b"*" and line[1:].isdigit() for line in data.split(b"\r\n"))
