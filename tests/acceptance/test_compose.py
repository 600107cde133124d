"""docker-compose.yml and its kin, as they are written; tests/acceptance/test_containers.py runs them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from batchpipe.config.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES = ["redis", "sandbox", "worker", "beat", "flower", "metrics"]


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


# -- the file --------------------------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    found: dict[str, Any] = interpolated(compose_file()["services"], {"REDIS_PASSWORD": "c0ffee"})
    return found


def test_the_file_is_valid_by_the_schema_of_the_compose_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_password_for_redis_nothing_starts() -> None:
    with pytest.raises(LookupError, match="REDIS_PASSWORD"):
        interpolated(compose_file(), {})


def test_each_variable_of_the_file_is_explained() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    names = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    assert names == {name for name in names if f"| `{name}` |" in page}


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_locked_down_and_comes_back(service: str) -> None:
    about = services()[service]
    assert about["read_only"] is True
    assert about["cap_drop"] == ["ALL"]
    assert about["security_opt"] == ["no-new-privileges:true"]
    assert about["restart"] == "unless-stopped"
    assert about["logging"]["options"]["max-size"]
    assert {"test", "interval", "timeout"} <= set(about["healthcheck"])
    assert about["stop_signal"] == "SIGTERM"
    for port in about.get("ports", []):
        assert port.startswith("127.0.0.1:"), "what is published for the world is asked by the world"


def test_only_workers_are_given_the_key_of_the_provider() -> None:
    given = {name: about.get("environment", {}).get("OPENAI_API_KEY") for name, about in services().items()}
    for service in ("beat", "flower", "metrics"):
        assert given[service] == "", f"{service} reads .env, and so the key"
    assert given["worker"] is None


def test_the_image_is_made_of_files_that_are_there_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for word in line.split()[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert re.findall(r"^USER (.+)$", text, re.M)[-1] != "root"


# -- the same processes under other supervisors ----------------------------------------------------------------------

UNITS = ROOT / "examples" / "deploy"
#: Options that only a container needs.
CONTAINER = re.compile(r" --(alive-file|address|host|port) \S+")


def plain(command: str) -> list[str]:
    """The command without variables before it, its path, and what only containers need."""
    words = shlex.split(CONTAINER.sub("", command))
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return [Path(words[0]).name, *words[1:]]


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    assert parser.read(UNITS / name)
    return parser


def test_procfile_and_systemd_units_start_what_the_compose_file_starts() -> None:
    composed = {name: plain(services()[name]["command"]) for name in ("worker", "beat", "flower", "metrics")}
    lines = (ROOT / "Procfile").read_text().splitlines()
    assert {name: plain(command) for name, command in (line.split(": ", 1) for line in lines)} == composed
    names = {name: f"batchpipe-{name}.service" for name in composed} | {"worker": "batchpipe-worker@.service"}
    assert {name: plain(unit(file)["Service"]["ExecStart"]) for name, file in names.items()} == composed


def test_workers_give_back_their_work_before_any_supervisor_loses_patience() -> None:
    """After STOP_SECONDS the messages go back to the queue, for which Celery may need some time, too."""
    needed = Settings.model_fields["stop_seconds"].default + 30
    worker = services()["worker"]
    assert worker["environment"]["REMAP_SIGTERM"] == "SIGQUIT"
    assert float(worker["stop_grace_period"][:-1]) >= needed
    service = unit("batchpipe-worker@.service")["Service"]
    assert "REMAP_SIGTERM=SIGQUIT" in service["Environment"].split()
    assert float(service["TimeoutStopSec"]) >= needed
    assert "REMAP_SIGTERM=SIGQUIT" in (ROOT / "Procfile").read_text()


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """With the command at a place where there is one."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    here = Path(sys.executable).with_name("batchpipe")
    files = [path for path in UNITS.iterdir() if path.suffix in (".service", ".timer")]
    assert len(files) == 6
    for path in files:
        text = path.read_text().replace("/opt/batchpipe/bin/batchpipe", str(here))
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / path.name) for path in files)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "batchpipe" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_all_units_are_hardened_alike() -> None:
    """A drop-in could say it once; but who forgets to copy that runs a worker as root."""

    def hardening(path: Path) -> str:
        _, found, rest = path.read_text().partition("# Hardening")
        return found + rest.partition("\n\n")[0].rstrip()

    blocks = {path.name: hardening(path) for path in UNITS.glob("*.service")}
    assert len(set(blocks.values())) == 1
    assert "ProtectSystem=strict" in next(iter(blocks.values()))
    assert all(unit(name)["Service"]["User"] == "batchpipe" for name in blocks)
