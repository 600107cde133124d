"""The image and the compose file, run: a job of 1,000 rows while each service is told to stop in turn.

The images, the services and the job are made once; each test looks at one side of what happened.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.acceptance.containers import Composed
from tests.acceptance.user_machine import API_KEY, PACE, read_rows, request_lines, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS, SHARDS = 1_000, 10
CONTENT = "GET /v1/files/{id}/content"
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
#: Asks the sandbox's switches, which answer to its own container only.
ASK = """
import sys, urllib.request as web
url, body = "http://127.0.0.1:8089/sandbox/" + sys.argv[1], sys.argv[2].encode() or None
print(web.urlopen(web.Request(url, data=body), timeout=10).read().decode())
"""
#: Says how the first process of a container runs, and where it may write.
LOOK = """
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs):' /proc/1/status
for folder in / /app /opt/venv /etc /tmp /data /state /var/tmp /sandbox; do
    if touch $folder/probe 2>/dev/null; then echo "writes: $folder"; rm $folder/probe; fi
done
"""


@dataclass
class Told:
    """What happened to one job."""

    house: Composed
    codes: list[tuple[str, int]] = field(default_factory=list)  #: each stop, with its exit code
    after: dict[str, bool] = field(default_factory=dict)  #: service -> healthy after its last stop
    #: service -> healthy when its processes had hung for a minute
    silent: dict[str, bool] = field(default_factory=dict)
    looks: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    doors: dict[str, Any] = field(default_factory=dict)  #: what they answer to somebody without a password
    modules: str = ""
    wait: Any = None
    ledger: dict[str, Any] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    def sandbox(self, route: str, document: dict[str, Any] | None = None) -> Any:
        body = json.dumps(document) if document is not None else ""
        return json.loads(self.house.inside("sandbox", "python", "-c", ASK, route, body))

    def hold(self, route: str, seconds: float) -> None:
        """Answers to these calls come late, so that they are under way when a signal comes."""
        self.sandbox("faults", {"kind": "delay", "route": route, "seconds": seconds})

    def held(self, route: str) -> int:
        hits: int = self.sandbox("state")["calls"].get(route, 0)
        return hits

    def created(self) -> int:
        return len(self.sandbox("state")["batches"])

    def all_fetched(self) -> bool:
        """The job has ended before its download was held up."""
        return (self.house.data / "results" / "output.jsonl").exists()

    def stop(self, service: str) -> None:
        self.codes.append((service, self.house.stop(service)))

    def restart(self, service: str) -> None:
        self.codes.append((service, self.house.restart(service)))
        self.await_health(service)

    def await_health(self, service: str) -> None:
        until(lambda: self.house.healthy(service), seconds=120, what=f"{service} is healthy", every=1)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    house = Composed(tmp_path_factory.mktemp("c"), VARIABLES)
    told = Told(house)
    try:
        house.build()
        start(told)
        look(told)
        run_a_job(told)
        told.logs = {service: house.log(service) for service in SERVICES}
        for service in reversed(SERVICES):
            told.stop(service)
        told.after = {service: house.healthy(service) for service in SERVICES}
        yield told
    finally:
        house.close()


def start(told: Told) -> None:
    """As Compose does: what others depend on comes first, and is waited for."""
    needed = {name for about in told.house.services.values() for name in about.get("depends_on", {})}
    assert needed == {"redis"}
    told.house.up(*needed)
    told.await_health("redis")
    told.house.up(*SERVICES[1:])
    for service in SERVICES[1:]:
        told.await_health(service)


def look(told: Told) -> None:
    house = told.house
    for service in SERVICES:
        told.looks[service] = house.inside(service, "sh", "-c", LOOK)
        told.arguments[service] = house.inside(service, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    for name, port in house.ports.items():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                told.doors[name] = answer.status
        except urllib.error.HTTPError as refusal:
            told.doors[name] = refusal.code
    told.doors["redis"] = house.inside("redis", "valkey-cli", "ping")
    (house.data / "celery.py").write_text("raise SystemExit('a module from where inputs lie')")
    told.modules = house.inside("worker", "sh", "-c", "cd /data && python -c 'import celery; print(celery.__file__)'")
    for service in ("worker", "beat"):
        told.silent[service] = healthy_though_hung(house, service)


def healthy_though_hung(house: Composed, service: str) -> bool:
    """The verdict on processes that have been stopped for a minute; afterwards they go on."""
    house.inside(service, "sh", "-c", "kill -STOP -1; touch -d '-61 seconds' /tmp/alive")
    try:
        return house.healthy(service)
    finally:
        house.inside(service, "sh", "-c", "kill -CONT -1")


def run_a_job(told: Told) -> None:
    house = told.house
    (house.data / "requests.jsonl").write_bytes(request_lines(ROWS))
    told.sandbox("faults", {"kind": "stuck"})
    told.hold("POST /v1/files", 4)
    command = f"batchpipe submit /data/requests.jsonl -o /data/results --max-rows {ROWS // SHARDS}"
    done = house.run(*command.split())
    assert done.returncode == 0, done.stderr

    until(lambda: told.held("POST /v1/files"), what="an upload is under way", every=0.5)
    told.restart("worker")
    until(lambda: told.created() == SHARDS, seconds=120, what="all batches are created", every=0.5)
    for service in ("redis", "beat", "flower", "metrics"):
        told.restart(service)
    told.restart("sandbox")  # its faults end with it: the batches get on
    told.hold(CONTENT, 3)
    until(lambda: told.held(CONTENT) or told.all_fetched(), seconds=120, what="a download is under way", every=0.5)
    told.restart("worker")
    told.wait = house.run("batchpipe", "wait", done.stdout.strip(), "--timeout", "90")
    told.ledger, told.batches = told.sandbox("ledger"), told.sandbox("state")["batches"]


def test_a_job_succeeds_though_each_service_is_told_to_stop_during_it(told: Told) -> None:
    assert told.wait.returncode == 0, told.wait.stderr + told.logs["worker"][-3000:]
    document = json.loads((told.house.data / "results/job.json").read_bytes())
    assert document["state"] == "succeeded"
    rows = read_rows(told.house.data / "results/output.jsonl")
    assert [row["custom_id"] for row in rows] == [f"r{number}" for number in range(ROWS)]


def test_nothing_is_paid_twice_though_each_service_is_told_to_stop(told: Told) -> None:
    assert told.ledger["billed_twice"] == []
    assert told.ledger["total"] == ROWS
    assert len(told.batches) == SHARDS


def test_each_service_ends_within_its_grace_period_and_says_that_all_is_well(told: Told) -> None:
    """What is killed at the end of its grace period ends with 137."""
    assert sorted(service for service, _ in told.codes) == sorted([*SERVICES, *SERVICES, "worker"])
    assert [found for found in told.codes if found[1] != 0] == []


def test_health_checks_tell_what_is_up_from_what_is_not(told: Told) -> None:
    """That all were healthy was waited for at the start, and after each restart."""
    assert told.after == dict.fromkeys(SERVICES, False)


@pytest.mark.parametrize("service", ["worker", "beat"])
def test_a_process_that_has_hung_for_a_minute_is_not_healthy(told: Told, service: str) -> None:
    assert told.silent[service] is False


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_without_rights_and_writes_to_its_volumes_only(told: Told, service: str) -> None:
    found = told.looks[service].splitlines()
    facts = {line.split(":")[0]: line.split(":")[1].split() for line in found if not line.startswith("writes")}
    assert "0" not in facts["Uid"]
    assert {int(facts[name][0], 16) for name in ("CapEff", "CapBnd")} == {0}
    assert facts["NoNewPrivs"] == ["1"]
    writes = {line.removeprefix("writes: ") for line in found if line.startswith("writes")}
    expected = {"/tmp"} | {"redis": {"/data"}, "sandbox": {"/sandbox"}}.get(service, {"/data", "/state", "/var/tmp"})
    if not told.house.engine.is_docker:
        expected |= {"/var/tmp"}  # podman's read-only root has it in memory
    assert writes == expected


def test_results_belong_to_the_owner_of_the_folder(told: Told) -> None:
    results = told.house.data / "results"
    assert {path.stat().st_uid for path in (results, *results.iterdir())} == {told.house.uid}


def test_no_module_is_taken_from_where_inputs_lie(told: Told) -> None:
    assert told.modules.startswith("/opt/venv/")


def test_no_secret_stands_in_the_arguments_of_a_process(told: Told) -> None:
    assert "valkey-server" in told.arguments["redis"] or "redis-server" in told.arguments["redis"]
    for service in SERVICES[1:]:
        assert f"batchpipe {service}" in told.arguments[service]
    for secret in (REDIS_PASSWORD, FLOWER_PASSWORD, API_KEY):
        assert secret not in str(told.arguments)


def test_no_secret_stands_in_a_log(told: Told) -> None:
    assert all(told.logs.values())
    for secret in (REDIS_PASSWORD, FLOWER_PASSWORD, API_KEY):
        assert secret not in str(told.logs)


def test_redis_and_flower_ask_for_a_password_and_metrics_do_not(told: Told) -> None:
    assert "NOAUTH" in told.doors["redis"]
    assert told.doors["flower"] == 401
    assert told.doors["metrics"] == 200
