"""Redis and Valkey, in each version and behind each kind of address."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.states import LoneRedis
from tests.acceptance.user_machine import Machine, Process, read_rows, until
from tests.matrix.cache import run
from tests.matrix.servers import SERVERS, server
from tests.redis_server import free_port

pytestmark = pytest.mark.matrix
#: Those that CI tries each time.
IN_CI = ("redis-6.2", "redis-8.0", "valkey-9.1")
NewRedis = Callable[..., LoneRedis]


@pytest.fixture
def new_redis(tmp_path: Path) -> Iterator[NewRedis]:
    with ExitStack() as stack:

        def make(program: Path | None = None, **options: object) -> LoneRedis:
            made = LoneRedis(tmp_path / "redis", program, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def machine_at(tmp_path: Path, sandbox: Sandbox) -> Iterator[Callable[[str], Machine]]:
    """A machine with its Redis at this address."""
    with ExitStack() as stack:

        def make(url: str) -> Machine:
            machine = Machine(tmp_path / "machine", sandbox, url)
            stack.callback(machine.close)
            return machine

        yield make


def findings(machine: Machine) -> list[str]:
    """What `doctor` says of Redis and the broker, but for what is well."""
    found = json.loads(machine.run("doctor", "--json").out)
    return [it["detail"] for it in found if it["what"] in ("redis", "broker") and it["verdict"] == "fail"]


def check_story(machine: Machine) -> Process:
    """Worker and beat; a job of three shards ends with all rows in order, each paid once; another is cancelled."""
    worker, beat = machine.worker(), machine.start("beat")
    job = machine.submit(machine.input(6), "--max-rows", "2")
    done = machine.run("wait", job, "--timeout", "60")
    assert done.code == 0, done.err + worker.err
    assert [row["custom_id"] for row in read_rows(machine.folder / "out/output.jsonl")] == [f"r{n}" for n in range(6)]
    assert set(machine.billed(job).values()) == {1}
    dropped = machine.submit(machine.input(2), output="dropped")
    assert machine.run("cancel", dropped).code == 0
    assert machine.run("wait", dropped, "--timeout", "60").code in (0, 4)
    assert findings(machine) == []
    for process in (worker, beat):
        assert process.running
        assert "Traceback" not in process.out + process.err, process.err
    return worker


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.ci] * (name in IN_CI)) for name in SERVERS])
def test_a_job_ends_on_this_server(name: str, new_redis: NewRedis, machine_at: Callable[[str], Machine]) -> None:
    check_story(machine_at(new_redis(server(name)).url))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ("-subj", "/CN=127.0.0.1")
    made = ("-newkey", "rsa:2048", "-nodes")
    key, names = folder / "ca.key", folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    run("openssl", "req", "-x509", *made, "-keyout", key, "-out", folder / "ca.crt", "-subj", "/CN=tests", "-days", "2")
    run("openssl", "req", *made, "-keyout", folder / "one.key", "-out", folder / "one.csr", *subject)
    sign = ("-CA", folder / "ca.crt", "-CAkey", key, "-CAcreateserial", "-days", "2", "-extfile", names)
    run("openssl", "x509", "-req", "-in", folder / "one.csr", "-out", folder / "one.crt", *sign)
    return folder


@pytest.mark.ci
def test_a_job_ends_over_tls_with_certificates_on_both_sides(
    new_redis: NewRedis, machine_at: Callable[[str], Machine], certificates: Path
) -> None:
    """Records and messages; and a worker that does not know the authority is not let through."""
    port, names = free_port(), {"tls-cert-file": "one.crt", "tls-key-file": "one.key", "tls-ca-cert-file": "ca.crt"}
    files = {option: certificates / name for option, name in names.items()}
    new_redis(**{"tls-port": port, **files})
    wanted = {"ssl_ca_certs": "ca.crt", "ssl_certfile": "one.crt", "ssl_keyfile": "one.key"}
    query = "&".join(f"{name}={certificates / file}" for name, file in wanted.items())
    machine = machine_at(f"rediss://127.0.0.1:{port}/0?{query}")
    check_story(machine)
    stranger = machine.run("list", env={"BATCHPIPE_REDIS_URL": f"rediss://127.0.0.1:{port}/0"})
    assert stranger.code == 1
    assert stranger.err.count("\n") == 1, stranger.err


@pytest.mark.ci
def test_a_job_ends_over_a_unix_socket(
    new_redis: NewRedis, machine_at: Callable[[str], Machine], tmp_path: Path
) -> None:
    """Records and messages are in the database that the address names."""
    path = tmp_path / "s"
    lone = new_redis(unixsocket=path)
    lone.client.config_set("requirepass", "word")
    lone.client.auth("word")
    check_story(machine_at(f"unix://:word@{path}?db=3"))
    assert {name: space["keys"] > 0 for name, space in lone.client.info("keyspace").items()} == {"db3": True}


@pytest.mark.ci
def test_the_address_of_a_sentinel_is_named_as_such(tmp_path: Path, new_redis: NewRedis, sandbox: Sandbox) -> None:
    """Its port, in a plain URL: workers and commands say what it is in one line."""
    primary, port = new_redis(), free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor one 127.0.0.1 {primary.port} 1\n")
    machine = Machine(tmp_path / "machine", sandbox, f"redis://127.0.0.1:{port}/0")
    with (tmp_path / "sentinel.log").open("wb") as log:
        program = str(server("redis-8.0"))
        sentinel = subprocess.Popen([program, str(config), "--sentinel"], stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: b"+monitor" in (tmp_path / "sentinel.log").read_bytes(), what="the Sentinel watches")
        done = machine.run("submit", machine.input(1), "-o", "out")
        assert (done.code, done.err.count("\n")) == (1, 1), done.err
        assert "Sentinel" in done.err
        assert any("Sentinel" in said for said in findings(machine))
        worker = machine.start("worker").finish()
        assert (worker.code, worker.err.count("\n")) == (1, 1), worker.err
        assert "Sentinel" in worker.err
    finally:
        machine.close()
        sentinel.kill()
        sentinel.wait()
