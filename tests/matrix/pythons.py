"""Pythons that people have. Each is looked for on this machine, then fetched."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.matrix.cache import CACHE, ROOT, environment, here_or, once, output, pip_into, run
from tests.matrix.debian import unpacked

#: What pyenv has built.
PYENV = Path("~/.pyenv/versions").expanduser()
#: version -> the release of Debian that has it
RELEASES = {"3.13": "trixie", "3.14": "forky"}


def python(version: str) -> Path:
    """That Python with batchpipe's dependencies and this source tree, in an environment of its own."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return Path(sys.executable)
    return once(CACHE / f"python-{version}", lambda folder: _installed(folder, version)) / "bin" / "python"


def django(version: str) -> Path:
    """A Python with this Django, and servers for it. Django 6 needs Python 3.12."""
    needs = None if version < "6" else python("3.12")
    return environment(f"django-{version}", f"django=={version}.*", "gunicorn", python=needs)


def _installed(folder: Path, version: str) -> None:
    run(_interpreter(version), "-m", "venv", "--without-pip", folder)
    pip_into(folder / "bin" / "python", "-e", f"{ROOT}[django,flask]", "gevent", "pytest")


def _interpreter(version: str) -> Path:
    here = [here_or(f"python-{version}", f"python{version}"), *sorted(PYENV.glob(f"{version}.*/bin/python"))]
    for found in filter(None, here):
        with suppress(subprocess.SubprocessError):  # pyenv's shim for one that is not switched on
            assert output(found, "import sys; print('%d.%d' % sys.version_info[:2])") == version, found
            return found
    if version in RELEASES:
        return unpacked(RELEASES[version], f"python{version}", f"python{version}-venv") / f"usr/bin/python{version}"
    given = f"MATRIX_PYTHON_{version.replace('.', '_')}"
    raise FileNotFoundError(f"put it on PATH as python{version}, or name it in {given}")
