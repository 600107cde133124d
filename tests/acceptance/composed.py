"""docker-compose.yml without Docker: each service's command, environment and health check, run as processes here.

What a container would have of its own is put in its place: folders of the container are folders of a test, names of
hosts and ports are ports of this machine. Nothing else of the file is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from batchpipe.private_redis import find_server

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
#: Service -> the port that it listens on in its container.
PORTS = {"redis": 6379, "flower": 5555, "metrics": 9464, "sandbox": 8089}
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGQUIT": signal.SIGQUIT}


def compose_file() -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load(COMPOSE)
    return document


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """What Compose makes of ${NAME:-default}, ${NAME:?why} and $$."""
    if isinstance(value, dict):
        return {key: interpolated(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [interpolated(part, variables) for part in value]
    if not isinstance(value, str):
        return value

    def filled(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, sign, other = match[1], match[2], match[3]
        if sign == ":?" and not variables.get(name):
            raise LookupError(f"{name}: {other}")
        return variables.get(name) or (other if sign == ":-" else "") or ""

    return re.sub(r"\$\$|\$\{(\w+)(?:(:[?-])([^}]*))?\}", filled, value)


def seconds(text: str) -> float:
    assert text.endswith("s"), text
    return float(text[:-1])


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets for who runs in the image, but for PATH."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = re.findall(r"^ENV (.+)$", text, re.M)
    pairs = (word.partition("=") for line in lines for word in shlex.split(line))
    return {name: value for name, _, value in pairs if name != "PATH"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def need(program: str) -> str:
    """The path of a program. Where there is none the test is skipped, but fails where CI is set."""
    if found := shutil.which(program):
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{program} is not installed")
    pytest.skip(f"{program} is not installed")


class Composed:
    """All services of the file on this machine."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder, self.variables = folder, dict(variables)
        self.services: dict[str, Any] = interpolated(compose_file()["services"], variables)
        self.ports = {name: free_port() for name in PORTS}
        self.data = folder / "data"
        for part in ("app", "data", "state", "sandbox", "redis", "bin", "var/tmp"):
            (folder / part).mkdir(parents=True)
        self._link_programs()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def _link_programs(self) -> None:
        server = find_server()
        assert server is not None
        # Valkey is a Redis under another name, with the same options
        programs = {"valkey-server": server[1], "valkey-cli": need("redis-cli"), "python": sys.executable}
        programs["batchpipe"] = str(Path(sys.executable).with_name("batchpipe"))
        for name, path in programs.items():
            (self.folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{path}" "$@"\n')
            (self.folder / "bin" / name).chmod(0o755)

    # -- what a container has of its own -----------------------------------------------------------------------------

    def here(self, service: str, text: str) -> str:
        """A text of the file, with the folders, hosts and ports of this machine."""
        folders = {"/data": str(self.folder / ("redis" if service == "redis" else "data"))}
        folders |= {path: f"{self.folder}{path}" for path in ("/state", "/sandbox", "/var")}
        folders["/tmp"] = str(self._tmp(service))
        text = re.sub(r"(?<![\w./:-])/(data|state|sandbox|tmp|var)\b", lambda match: folders[match[0]], text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        for name, port in PORTS.items():
            text = text.replace(f"{name}:{port}", f"127.0.0.1:{port}")
            text = re.sub(rf"\b{port}\b", str(self.ports[name]), text)
        return text

    def _tmp(self, service: str) -> Path:
        path = self.folder / f"tmp-{service}"
        path.mkdir(exist_ok=True)
        return path

    def command(self, service: str) -> list[str]:
        command = self.services[service]["command"]
        parts = shlex.split(command) if isinstance(command, str) else command
        return [self.here(service, part) for part in parts]

    def environment(self, service: str) -> dict[str, str]:
        about = self.services[service]
        given = {**(self.variables if about.get("env_file") else {}), **about.get("environment", {})}
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            **image_environment(),
            **{name: self.here(service, str(value)) for name, value in given.items()},
        }

    # -- what Docker does --------------------------------------------------------------------------------------------

    def start(self, service: str) -> None:
        with (self.folder / f"{service}.log").open("ab") as log:
            self._running[service] = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=self.folder / "app",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, service: str) -> int:
        """The service's stop signal, and its exit code; AssertionError if its grace period is over before."""
        process, about = self._running[service], self.services[service]
        began = time.monotonic()
        process.send_signal(SIGNALS[about["stop_signal"]])
        try:
            return process.wait(seconds(about["stop_grace_period"]))
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{service} still runs {time.monotonic() - began:.0f} s after its signal:\n{self.log(service)[-3000:]}"
            ) from None

    def restart(self, service: str) -> int:
        """As Docker does with what has ended: `restart: unless-stopped`."""
        assert self.services[service]["restart"] == "unless-stopped"
        code = self.stop(service)
        self.start(service)
        return code

    def healthy(self, service: str) -> bool:
        test = self.services[service]["healthcheck"]["test"]
        command = ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:]
        done = subprocess.run(
            [self.here(service, part) for part in command],
            env=self.environment(service),
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode == 0

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`docker compose exec worker COMMAND...`, to its end."""
        return subprocess.run(
            [self.here("worker", part) for part in command],
            env=self.environment("worker"),
            cwd=self.folder / "app",
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")

    def pid(self, service: str) -> int:
        return self._running[service].pid

    def running(self, service: str) -> bool:
        return self._running[service].poll() is None

    def close(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: its children, too
                process.wait()
