"""docker-compose.yml: valid, and its very commands carry a job through while each of them is told to stop in turn."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from batchpipe.settings import Settings
from tests.acceptance.composed import COMPOSE, ROOT, SIGNALS, Composed, compose_file, interpolated
from tests.acceptance.place import API_KEY, PACE, read_rows, request_lines, until

ROWS, SHARDS = 1_000, 10
REDIS_PASSWORD = "c0ffee0redis"
FLOWER_PASSWORD = "c0ffee0flower"
#: What a person writes into .env to try it out, and short times.
VARIABLES = {
    **PACE,
    "REDIS_PASSWORD": REDIS_PASSWORD,
    "BATCHPIPE_FLOWER_PASSWORD": FLOWER_PASSWORD,
    "OPENAI_API_KEY": API_KEY,
    "OPENAI_BASE_URL": "http://sandbox:8089/v1",
    "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",
    "BATCHPIPE_ACCOUNTS__DEFAULT__LOOKS_PER_SECOND": "50",
    "BATCHPIPE_POLL_MAX_SECONDS": "1",
    "BATCHPIPE_STOP_SECONDS": "3",
}
SERVICES = ["redis", "sandbox", "worker", "beat", "flower", "metrics"]


@dataclass
class Told:
    """What happened to one job."""

    house: Composed
    before: dict[str, bool] = field(default_factory=dict)  #: service -> healthy before it was started
    after: dict[str, bool] = field(default_factory=dict)  #: ... and after it was stopped
    codes: list[tuple[str, int]] = field(default_factory=list)  #: each stop during the job, with its exit code
    arguments: list[list[str]] = field(default_factory=list)
    door: int = 0  #: what Flower answers to somebody without its password
    job: str = ""
    wait: Any = None
    ledger: dict[str, Any] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)

    def sandbox(self, route: str, document: dict[str, Any] | None = None) -> Any:
        url = f"http://127.0.0.1:{self.house.ports['sandbox']}/sandbox/{route}"
        body = json.dumps(document).encode() if document is not None else None
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10) as answer:
            return json.loads(answer.read())

    def hold(self, route: str, seconds: float) -> None:
        """Answers to these calls come late, so that they are under way when a signal comes."""
        self.sandbox("faults", {"kind": "delay", "route": route, "seconds": seconds})

    def held(self, route: str) -> int:
        hits: int = self.sandbox("state")["calls"].get(route, 0)
        return hits

    def all_fetched(self) -> bool:
        """The job was quicker than we."""
        return (self.house.data / "results" / "output.jsonl").exists()

    def restart(self, service: str) -> None:
        self.codes.append((service, self.house.restart(service)))
        self.await_health(service)

    def await_health(self, service: str) -> None:
        until(lambda: self.house.healthy(service), what=f"{service} is healthy")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    told = Told(Composed(tmp_path_factory.mktemp("compose"), VARIABLES))
    try:
        start(told)
        run_a_job(told)
        for service in reversed(SERVICES):
            told.codes.append((service, told.house.stop(service)))
        told.after = {service: told.house.healthy(service) for service in ("redis", "flower", "metrics", "sandbox")}
        yield told
    finally:
        told.house.close()


def start(told: Told) -> None:
    house = told.house
    told.before = {service: house.healthy(service) for service in SERVICES}
    for service in SERVICES:
        for needed in house.services[service].get("depends_on", {}):
            told.await_health(needed)
        house.start(service)
    for service in SERVICES:
        told.await_health(service)
    for service in SERVICES:
        parent = psutil.Process(house.pid(service))
        told.arguments += [process.cmdline() for process in (parent, *parent.children(recursive=True))]
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{house.ports['flower']}/", timeout=10).close()
    except urllib.error.HTTPError as refusal:
        told.door = refusal.code


def run_a_job(told: Told) -> None:
    house = told.house
    (house.data / "requests.jsonl").write_bytes(request_lines(ROWS))
    told.sandbox("faults", {"kind": "stuck"})
    told.hold("POST /v1/files", 1.5)
    command = f"batchpipe submit /data/requests.jsonl -o /data/results --max-rows {ROWS // SHARDS}"
    done = house.run(*command.split())
    assert done.returncode == 0, done.stderr
    told.job = done.stdout.strip()

    until(lambda: told.held("POST /v1/files"), what="an upload is under way")
    told.restart("worker")
    until(lambda: len(told.sandbox("state")["batches"]) == SHARDS, what="all batches are created")
    for service in ("redis", "beat", "flower", "metrics"):
        told.restart(service)
    told.restart("sandbox")  # its faults end with it: the batches get on
    told.hold("GET /v1/files/{id}/content", 1.0)
    until(lambda: told.held("GET /v1/files/{id}/content") or told.all_fetched(), what="a download is under way")
    told.restart("worker")
    told.wait = house.run("batchpipe", "wait", told.job, "--timeout", "60")
    told.ledger, told.batches = told.sandbox("ledger"), told.sandbox("state")["batches"]


@pytest.mark.slow
def test_a_job_succeeds_though_each_process_is_told_to_stop_during_it(told: Told) -> None:
    assert told.wait.returncode == 0, told.wait.stderr + told.house.log("worker")[-3000:]
    document = json.loads((told.house.data / "results/job.json").read_bytes())
    assert document["state"] == "succeeded"
    rows = read_rows(told.house.data / "results/output.jsonl")
    assert [row["custom_id"] for row in rows] == [f"r{number}" for number in range(ROWS)]


@pytest.mark.slow
def test_nothing_is_paid_twice_though_each_process_is_told_to_stop(told: Told) -> None:
    assert told.ledger["billed_twice"] == []
    assert told.ledger["total"] == ROWS
    assert len(told.batches) == SHARDS


@pytest.mark.slow
def test_each_process_ends_within_its_grace_period_and_says_that_all_is_well(told: Told) -> None:
    """The helper fails where the time is over; here are the codes."""
    assert {service for service, _ in told.codes} == set(SERVICES)
    assert [found for found in told.codes if found[1] != 0] == []


@pytest.mark.slow
def test_health_checks_tell_what_is_up_from_what_is_not(told: Told) -> None:
    """That all were healthy was waited for at the start, and after each restart."""
    assert told.before == dict.fromkeys(SERVICES, False)
    assert told.after == dict.fromkeys(told.after, False)


@pytest.mark.slow
@pytest.mark.parametrize("service", ["worker", "beat"])
def test_a_process_that_has_gone_silent_is_not_healthy(told: Told, service: str) -> None:
    file = told.house.folder / f"tmp-{service}" / "alive"
    assert told.house.healthy(service)  # it was told to stop a moment ago
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 60))
    assert not told.house.healthy(service)


@pytest.mark.slow
def test_no_secret_stands_in_the_arguments_of_a_process(told: Told) -> None:
    text = json.dumps(told.arguments)
    assert "valkey-server" in text or "redis-server" in text
    assert "batchpipe" in text
    for secret in (REDIS_PASSWORD, FLOWER_PASSWORD, API_KEY):
        assert secret not in text


@pytest.mark.slow
def test_redis_asks_for_the_password_and_so_does_flower(told: Told) -> None:
    assert told.door == 401
    assert "requirepass" in str(told.house.services["redis"]["command"])
    log = told.house.log("redis")
    assert "ready to accept connections" in log.lower()


# -- the file --------------------------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    found: dict[str, Any] = interpolated(compose_file()["services"], VARIABLES)
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
    assert about["stop_signal"] in SIGNALS
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
