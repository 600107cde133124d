"""The worker that a command starts, without the second that its imports take.

A process that has begun to work cannot be forked with good conscience: threads, connections and locks would go along.
So a command of the tests forks at its very beginning a child that waits; when the command starts its worker, that child
is told what to be. It is a child like any other: it has a number, is waited for and killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, BinaryIO

from batchpipe.client import local_run

#: More than an order is long: arguments and environment.
_MOST = 1 << 20


class Hatchery:
    """Made at the beginning of a command. ``worker_words`` are set in the child, once it is to be a worker."""

    def __init__(self) -> None:
        self.worker_words: list[str] = []
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            self.worker_words = _become(its)
            return
        its.close()
        self._orders: socket.socket | None = ours
        cast_module: Any = local_run
        cast_module.subprocess = SimpleNamespace(
            **{name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "TimeoutExpired")}, Popen=self.start
        )

    def start(self, command: Sequence[str], **how: Any) -> Any:
        """In place of ``subprocess.Popen``; the first time only: what is started again is a fresh Python."""
        if self._orders is None:
            return subprocess.Popen(command, **how)
        orders, self._orders = self._orders, None
        return Hatched(self._pid, orders, command, **how)


def _become(orders: socket.socket) -> list[str]:
    """Wait for the order; answers the words of the command that this process is from now on."""
    data, handles, _, _ = socket.recv_fds(orders, _MOST, 2)
    if not data:  # no worker was needed
        os._exit(0)
    orders.close()
    os.setsid()
    source, log = handles
    for number, handle in enumerate((source, log, log)):
        os.dup2(handle, number)
    os.close(source)
    os.close(log)
    order = json.loads(data)
    os.environ.clear()
    os.environ.update(order["env"])
    del sys.path[0]  # it is started with -P
    words: list[str] = order["words"]
    return words


class Hatched:
    """What a ``LocalWorker`` uses of a ``subprocess.Popen``."""

    def __init__(
        self,
        pid: int,
        orders: socket.socket,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: BinaryIO,
        stderr: int,
        env: Mapping[str, str],
        start_new_session: bool,
    ) -> None:
        assert (stdin, stderr, start_new_session) == (subprocess.PIPE, subprocess.STDOUT, True)
        assert list(command[1:4]) == ["-P", "-m", "batchpipe"], command
        source, sink = os.pipe()
        order = json.dumps({"words": list(command[4:]), "env": dict(env)}).encode()
        orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        socket.send_fds(orders, [order], [source, stdout.fileno()])
        orders.close()
        os.close(source)
        self.pid = pid
        self.returncode: int | None = None
        self.stdin = os.fdopen(sink, "wb", buffering=0)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        ends = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > ends:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            time.sleep(0.02)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
