"""The clock of one program, moved while it runs: libfaketime reads from a file by how much, at each look at it."""

from __future__ import annotations

import os
from pathlib import Path

#: Where Debian and Ubuntu, Fedora, and Homebrew on Linux have it.
_PLACES = (
    *("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1"),
    *("/usr/lib64/faketime/libfaketime.so.1", "/home/linuxbrew/.linuxbrew/lib/faketime/libfaketime.so.1"),
)


def _libraries() -> list[Path]:
    return [path for place in _PLACES for path in Path("/").glob(place[1:])]


class FakeTime:
    """``environment`` is what the program is to be started with; its monotonic clock stays as it is."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._file = folder / "faketime"
        self.set(0.0)
        self.environment = {
            # libc's own malloc goes before that of Redis, which would look at the clock before the library is ready
            "LD_PRELOAD": f"{library}:libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",  # which a killed program would leave behind
        }

    @classmethod
    def found(cls, folder: Path) -> FakeTime | None:
        """None where the library is not installed (Debian: apt install faketime)."""
        libraries = _libraries()
        return cls(libraries[0], folder) if libraries else None

    @staticmethod
    def is_installed() -> bool:
        return bool(_libraries())

    def set(self, seconds: float) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{seconds:+.0f}")
        os.replace(part, self._file)
