"""docker-compose.yml in containers: with Docker where it works, else with podman and what Debian has.

Podman here needs no registry and no daemon. `debootstrap` makes the base that the Dockerfile names, podman (with
buildah inside it) builds the image on that, and podman-compose reads the compose file. What differs from Docker and the
real images: Debian's Python in place of the base's, Debian's Redis under the names of Valkey, health checks that are
made when a test asks (for no systemd is there to make them), and a /var/tmp in memory where the file has none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.redis_server import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
#: Service -> the port that it publishes.
PUBLISHED = {"flower": 5555, "metrics": 9464}
#: Owner of the folder of inputs and outputs, where we may choose.
DATA_UID = 1234

CONTAINERS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
# The name server of Debian's podman loses the first question after each start and stop.
dns_options = ["timeout:1", "attempts:5"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{folder}/tmp"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""
STAND_IN_FOR_VALKEY = """\
FROM {base}
RUN apt-get install -y --no-install-recommends redis-server \\
    && ln -s redis-server /usr/bin/valkey-server && ln -s redis-cli /usr/bin/valkey-cli \\
    && useradd --system valkey && install -d -o valkey /data
"""


@dataclass(frozen=True)
class Engine:
    """What runs containers."""

    program: str
    compose: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def is_docker(self) -> bool:
        return self.program == "docker"

    def run(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        return call(self.program, *arguments, env=self.environment, **how)


def call(*command: str, seconds: float = 300, check: bool = True, **how: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, **how)
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def answers(*command: str) -> bool:
    return shutil.which(command[0]) is not None and call(*command, seconds=60, check=False).returncode == 0


def find_engine(folder: Path) -> Engine:
    """Docker or podman. What is installed must work; where neither is installed the test is skipped."""
    if answers("docker", "info") and answers("docker", "compose", "version"):
        return Engine("docker", ("docker", "compose"), os.environ)
    missing = [name for name in ("podman", "runc", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs Docker with `docker compose`, or to be root with podman (missing: {missing or 'root'})")
    files = {"CONTAINERS_CONF": CONTAINERS, "CONTAINERS_STORAGE_CONF": STORAGE}
    for name, text in files.items():
        (folder / name).write_text(text.format(folder=folder))
    environment = {**os.environ, **{name: str(folder / name) for name in files}}
    compose = (sys.executable, "-m", "podman_compose", "--in-pod=false")
    return Engine("podman", compose, environment)


# -- images where there is no registry -------------------------------------------------------------------------------


def make_base(engine: Engine, folder: Path) -> str:
    """The image that the Dockerfile starts from, as far as Debian has it; returns its name."""
    (name,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M))
    suite = name.rpartition("-")[2]
    root = folder / "base"
    call("debootstrap", "--variant=minbase", "--include=python3,python3-venv,python3-pip", suite, str(root))
    (root / "usr/bin/python").symlink_to("python3")
    archive = folder / "base.tar"
    call("tar", "--create", "--file", str(archive), "--directory", str(root), "--exclude=./var/cache/apt/*.deb", ".")
    engine.run("import", str(archive), f"docker.io/library/{name}")
    shutil.rmtree(root)
    archive.unlink()
    return str(name)


def make_redis(engine: Engine, folder: Path, base: str, name: str) -> None:
    (folder / "Redis").write_text(STAND_IN_FOR_VALKEY.format(base=base))
    empty = folder / "empty"
    empty.mkdir()
    engine.run(
        "build", "--isolation", "chroot", "--tag", f"docker.io/{name}", "--file", str(folder / "Redis"), str(empty)
    )


def pip_mounts(folder: Path) -> list[str]:
    """Where this machine's pip finds packages, for the time of the build: nothing of it is written into the image."""
    listed = call(sys.executable, "-m", "pip", "config", "list").stdout
    found = {name.removeprefix("default-"): value for name, value in re.findall(r"\.([a-z-]+)='(.*)'$", listed, re.M)}
    names = ("index-url", "extra-index-url", "trusted-host", "proxy", "cert", "timeout")
    kept = {name: found[name] for name in names if name in found and not found[name].startswith("file:")}
    path = folder / "pip.conf"
    path.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in kept.items()), ""]))
    mounts = [f"--volume={path}:/etc/pip.conf:ro"]
    if "cert" in kept:
        mounts.append(f"--volume={kept['cert']}:{kept['cert']}:ro")
    return mounts


# -- the services ----------------------------------------------------------------------------------------------------


def copy_project(folder: Path) -> None:
    """What the image and the services are made of, as in a clone."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in ("Dockerfile", ".dockerignore", COMPOSE.name, *allowed):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


class Composed:
    """All services of the file, in a project folder of their own, with images and names of their own."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder, self.engine = folder, find_engine(folder)
        self.services: dict[str, Any] = YAML(typ="safe", pure=True).load(COMPOSE)["services"]
        self.ports = {name: free_port() for name in PUBLISHED}
        self.project = f"batchpipe-test-{uuid.uuid4().hex[:8]}"
        self.uid = os.geteuid() or DATA_UID
        self.home = folder / "project"
        self.data = self.home / "data"
        self.data.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(self.data, self.uid, self.uid)
        copy_project(self.home)
        lines = {**variables, "DATA_UID": str(self.uid)}
        (self.home / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        (self.home / "docker-compose.override.yml").write_text(self._override())

    def _override(self) -> str:
        """Names and ports that are nobody else's on this machine."""
        lines = ["services:"]
        for name, about in self.services.items():
            image = self.project if about["image"] == "batchpipe" else about["image"]
            ports = f'!override ["127.0.0.1:{self.ports[name]}:{PUBLISHED[name]}"]' if name in PUBLISHED else "[]"
            lines.append(f"  {name}: {{image: {json.dumps(image)}, ports: {ports}}}")
        return "\n".join(lines) + "\n"

    def compose(
        self, *arguments: str, check: bool = True, options: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        command = (*self.engine.compose, *options, "--project-name", self.project, "--profile", "sandbox", *arguments)
        return call(*command, cwd=self.home, env=self.engine.environment, check=check)

    def build(self) -> None:
        if self.engine.is_docker:
            self.compose("build", "worker")
            return
        base = make_base(self.engine, self._folder)
        make_redis(self.engine, self._folder, base, self.services["redis"]["image"])
        arguments = ["--isolation=chroot", *pip_mounts(self._folder)]
        self.compose("build", "worker", options=["--podman-build-args", " ".join(arguments)])

    def up(self, *services: str) -> None:
        self.compose("up", "--detach", "--no-build", "--no-deps", *services)

    def stop(self, service: str) -> int:
        """By its signal and within its grace period; the exit code, 137 if it had to be killed."""
        self.compose("stop", service)
        state = self.about(service)["State"]
        assert not state["Running"], state
        return int(state["ExitCode"])

    def restart(self, service: str) -> int:
        code = self.stop(service)
        self.compose("start", service)
        return code

    def container(self, service: str) -> str:
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return self.engine.run("ps", "--all", "--quiet", *filters).stdout.strip()

    def about(self, service: str) -> Any:
        return json.loads(self.engine.run("inspect", self.container(service)).stdout)[0]

    def healthy(self, service: str) -> bool:
        if self.engine.is_docker:
            return bool(self.about(service)["State"]["Health"]["Status"] == "healthy")
        return self.engine.run("healthcheck", "run", self.container(service), check=False).returncode == 0

    def inside(self, service: str, *command: str, check: bool = True) -> str:
        """What a command in the service's container prints, as the container's user."""
        return self.engine.run("exec", self.container(service), *command, check=check).stdout

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`docker compose exec worker COMMAND...`, to its end."""
        return self.compose("exec", "-T", "worker", *command, check=False)

    def log(self, service: str) -> str:
        done = self.engine.run("logs", self.container(service))
        return done.stdout + done.stderr

    def close(self) -> None:
        """Nothing of it stays: no container, volume, network, image, mount or file."""
        try:
            if self.engine.is_docker:
                self.compose("down", "--volumes", "--timeout", "1", check=False)
                self.engine.run("image", "rm", "--force", self.project, check=False)
            else:
                self.engine.run("rm", "--all", "--force", "--time", "0", check=False)
                self.engine.run("network", "prune", "--force", check=False)
        finally:
            unmount(self._folder)
            shutil.rmtree(self._folder, ignore_errors=True)


def unmount(folder: Path) -> None:
    """What is mounted below a folder, the last first."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in reversed(mounted):
        if Path(path).is_relative_to(folder):
            call("umount", "--lazy", path, check=False)
