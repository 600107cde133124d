"""A RabbitMQ of the tests' own, on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.acceptance.user_machine import until
from tests.redis_server import free_port

#: Debian's on PATH gives up our user for its own.
DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


@contextmanager
def running_rabbitmq(folder: Path, server: Path | None = None, path: str = "") -> Iterator[str]:
    """The address of one whose data lies in the folder; ``path`` comes before PATH. None here: the test is skipped."""
    here = shutil.which("rabbitmq-server")
    program = server or (DEBIANS if DEBIANS.exists() else here and Path(here))
    if not program:
        pytest.skip("no rabbitmq-server here")
    port = free_port()
    environment = {
        "PATH": f"{path}{os.pathsep}{os.environ['PATH']}" if path else os.environ["PATH"],
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(free_port()),
        "RABBITMQ_NODENAME": f"batchpipe{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen([program], env=environment, cwd=folder, stdout=out, stderr=out)
    try:
        until(lambda: _answers(port) or process.poll() is not None, 90, "RabbitMQ listens")
        if process.poll() is not None:
            pytest.skip(f"rabbitmq-server does not start here: {(folder / 'out').read_text()[-300:]}")
        yield f"amqp://guest:guest@127.0.0.1:{port}//"
    finally:
        for one in _of(folder):  # the Erlang machine under the script, and its daemon of names
            with suppress(psutil.Error):
                one.kill()
        process.wait()


def _of(folder: Path) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if one.environ().get("HOME") == str(folder):
                found.append(one)
    return found


def _answers(port: int) -> bool:
    """True once the broker speaks: it shakes hands, which comes a while after it listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(2)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
    except OSError:
        return False
