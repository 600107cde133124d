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
class Observed:
    """What happened to one job."""

    composed: Composed
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
        return json.loads(self.composed.inside("sandbox", "python", "-c", ASK, route, body))

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
        return (self.composed.data / "results" / "output.jsonl").exists()

    def stop(self, service: str) -> None:
        self.codes.append((service, self.composed.stop(service)))

    def restart(self, service: str) -> None:
        self.codes.append((service, self.composed.restart(service)))
        self.await_health(service)

    def await_health(self, service: str) -> None:
        until(lambda: self.composed.healthy(service), seconds=120, what=f"{service} is healthy", every=1)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    composed = Composed(tmp_path_factory.mktemp("c"), VARIABLES)
    observed = Observed(composed)
    try:
        composed.build()
        start(observed)
        look(observed)
        run_a_job(observed)
        observed.logs = {service: composed.log(service) for service in SERVICES}
        for service in reversed(SERVICES):
            observed.stop(service)
        observed.after = {service: composed.healthy(service) for service in SERVICES}
        yield observed
    finally:
        composed.close()


def start(observed: Observed) -> None:
    """As Compose does: what others depend on comes first, and is waited for."""
    needed = {name for about in observed.composed.services.values() for name in about.get("depends_on", {})}
    assert needed == {"redis"}
    observed.composed.up(*needed)
    observed.await_health("redis")
    observed.composed.up(*SERVICES[1:])
    for service in SERVICES[1:]:
        observed.await_health(service)


def look(observed: Observed) -> None:
    composed = observed.composed
    for service in SERVICES:
        observed.looks[service] = composed.inside(service, "sh", "-c", LOOK)
        observed.arguments[service] = composed.inside(service, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    for name, port in composed.ports.items():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                observed.doors[name] = answer.status
        except urllib.error.HTTPError as refusal:
            observed.doors[name] = refusal.code
    observed.doors["redis"] = composed.inside("redis", "valkey-cli", "ping")
    (composed.data / "celery.py").write_text("raise SystemExit('a module from where inputs lie')")
    observed.modules = composed.inside(
        "worker", "sh", "-c", "cd /data && python -c 'import celery; print(celery.__file__)'"
    )
    for service in ("worker", "beat"):
        observed.silent[service] = healthy_though_hung(composed, service)


def healthy_though_hung(composed: Composed, service: str) -> bool:
    """The verdict on processes that have been stopped for a minute; afterwards they go on."""
    composed.inside(service, "sh", "-c", "kill -STOP -1; touch -d '-61 seconds' /tmp/alive")
    try:
        return composed.healthy(service)
    finally:
        composed.inside(service, "sh", "-c", "kill -CONT -1")


def run_a_job(observed: Observed) -> None:
    composed = observed.composed
    (composed.data / "requests.jsonl").write_bytes(request_lines(ROWS))
    observed.sandbox("faults", {"kind": "stuck"})
    observed.hold("POST /v1/files", 4)
    command = f"batchpipe submit /data/requests.jsonl -o /data/results --max-rows {ROWS // SHARDS}"
    done = composed.run(*command.split())
    assert done.returncode == 0, done.stderr

    until(lambda: observed.held("POST /v1/files"), what="an upload is under way", every=0.5)
    observed.restart("worker")
    until(lambda: observed.created() == SHARDS, seconds=120, what="all batches are created", every=0.5)
    for service in ("redis", "beat", "flower", "metrics"):
        observed.restart(service)
    observed.restart("sandbox")  # its faults end with it: the batches get on
    observed.hold(CONTENT, 3)
    until(
        lambda: observed.held(CONTENT) or observed.all_fetched(), seconds=120, what="a download is under way", every=0.5
    )
    observed.restart("worker")
    observed.wait = composed.run("batchpipe", "wait", done.stdout.strip(), "--timeout", "90")
    observed.ledger, observed.batches = observed.sandbox("ledger"), observed.sandbox("state")["batches"]


def test_a_job_succeeds_though_each_service_is_told_to_stop_during_it(observed: Observed) -> None:
    assert observed.wait.returncode == 0, observed.wait.stderr + observed.logs["worker"][-3000:]
    document = json.loads((observed.composed.data / "results/job.json").read_bytes())
    assert document["state"] == "succeeded"
    rows = read_rows(observed.composed.data / "results/output.jsonl")
    assert [row["custom_id"] for row in rows] == [f"r{number}" for number in range(ROWS)]


def test_nothing_is_paid_twice_though_each_service_is_told_to_stop(observed: Observed) -> None:
    assert observed.ledger["billed_twice"] == []
    assert observed.ledger["total"] == ROWS
    assert len(observed.batches) == SHARDS


def test_each_service_ends_within_its_grace_period_and_says_that_all_is_well(observed: Observed) -> None:
    """What is killed at the end of its grace period ends with 137."""
    assert sorted(service for service, _ in observed.codes) == sorted([*SERVICES, *SERVICES, "worker"])
    assert [found for found in observed.codes if found[1] != 0] == []


def test_health_checks_tell_what_is_up_from_what_is_not(observed: Observed) -> None:
    """That all were healthy was waited for at the start, and after each restart."""
    assert observed.after == dict.fromkeys(SERVICES, False)


@pytest.mark.parametrize("service", ["worker", "beat"])
def test_a_process_that_has_hung_for_a_minute_is_not_healthy(observed: Observed, service: str) -> None:
    assert observed.silent[service] is False


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_runs_without_rights_and_writes_to_its_volumes_only(observed: Observed, service: str) -> None:
    found = observed.looks[service].splitlines()
    facts = {line.split(":")[0]: line.split(":")[1].split() for line in found if not line.startswith("writes")}
    assert "0" not in facts["Uid"]
    assert {int(facts[name][0], 16) for name in ("CapEff", "CapBnd")} == {0}
    assert facts["NoNewPrivs"] == ["1"]
    writes = {line.removeprefix("writes: ") for line in found if line.startswith("writes")}
    expected = {"/tmp"} | {"redis": {"/data"}, "sandbox": {"/sandbox"}}.get(service, {"/data", "/state", "/var/tmp"})
    if not observed.composed.engine.is_docker:
        expected |= {"/var/tmp"}  # podman's read-only root has it in memory
    assert writes == expected


def test_results_belong_to_the_owner_of_the_folder(observed: Observed) -> None:
    results = observed.composed.data / "results"
    assert {path.stat().st_uid for path in (results, *results.iterdir())} == {observed.composed.uid}


def test_no_module_is_taken_from_where_inputs_lie(observed: Observed) -> None:
    assert observed.modules.startswith("/opt/venv/")


def test_no_secret_stands_in_the_arguments_of_a_process(observed: Observed) -> None:
    assert "valkey-server" in observed.arguments["redis"] or "redis-server" in observed.arguments["redis"]
    for service in SERVICES[1:]:
        assert f"batchpipe {service}" in observed.arguments[service]
    for secret in (REDIS_PASSWORD, FLOWER_PASSWORD, API_KEY):
        assert secret not in str(observed.arguments)


def test_no_secret_stands_in_a_log(observed: Observed) -> None:
    assert all(observed.logs.values())
    for secret in (REDIS_PASSWORD, FLOWER_PASSWORD, API_KEY):
        assert secret not in str(observed.logs)


def test_redis_and_flower_ask_for_a_password_and_metrics_do_not(observed: Observed) -> None:
    assert "NOAUTH" in observed.doors["redis"]
    assert observed.doors["flower"] == 401
    assert observed.doors["metrics"] == 200
