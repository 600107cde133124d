"""The API key and the password of the private Redis are nowhere but where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import API_KEY, Machine, batches_of, until

pytestmark = pytest.mark.slow

HEAD = API_KEY[:16]


def files_with(folder: Path, secret: str) -> list[str]:
    data = ((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path, content in data if secret.encode() in content]


def values(server: redis.Redis) -> Iterator[str]:
    """Every key and value, as text. DUMP would compress them."""
    readers: dict[str, Callable[[str], Any]] = {
        "string": server.get,
        "hash": server.hgetall,
        "list": lambda key: server.lrange(key, 0, -1),
        "set": server.smembers,
        "zset": lambda key: server.zrange(key, 0, -1, withscores=True),
        "stream": server.xrange,
    }
    for key in server.scan_iter():
        kind = server.type(key)
        yield f"{key} {readers[str(kind)](key)}"


def command_lines() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def seen(new_machine: Callable[..., Machine], new_sandbox: Callable[..., Sandbox]) -> dict[str, Any]:
    """A run and a worker that talks much, on a machine with a private Redis; a look at all while batches are open."""
    sandbox = new_sandbox()
    machine = new_machine("secret", fresh=True, private=True, provider=sandbox)
    stuck = sandbox.faults.add("stuck")
    sandbox.faults.add("status", route="GET /v1/batches/{id}", status=500, times=1)
    worker = machine.worker("--loglevel", "DEBUG")
    job = machine.submit(machine.input(4), "--max-rows", "2")
    run = machine.start("run", machine.input(2, name="two.jsonl"), "-o", machine.folder / "run")
    until(lambda: len(batches_of(sandbox)) == 3, what="all batches are created")
    until(lambda: "poll" in worker.err, what="the worker has looked")
    record = json.loads((machine.home / "redis/server.json").read_bytes())
    url = f"redis://:{record['password']}@127.0.0.1:{record['port']}/0"
    with redis.Redis.from_url(url, decode_responses=True) as server:
        held = list(values(server))
    found: dict[str, Any] = {
        "machine": machine,
        "password": record["password"],
        "redis": held,
        "lines": command_lines(),
    }
    sandbox.faults.remove(stuck)
    assert run.finish().code == 0, run.err
    assert machine.run("wait", job).code == 0
    found["outputs"] = machine.run("doctor"), machine.run("status", job, "--json"), machine.run("logs", job, "--json")
    found["worker"], found["port"] = worker, urlsplit(url).port
    return found


def test_the_api_key_is_in_no_file(seen: dict[str, Any]) -> None:
    """Neither in the output and its workspace nor in the home, the logs, or the Redis files."""
    assert len(list(seen["machine"].home.rglob("*.log"))) >= 2
    assert files_with(seen["machine"].folder, HEAD) == []


def test_the_api_key_is_not_in_redis(seen: dict[str, Any]) -> None:
    """Messages and records carry the name of the account only."""
    assert len(seen["redis"]) > 5
    assert any('"account": "default"' in value or "'account': 'default'" in value for value in seen["redis"])
    assert [value for value in seen["redis"] if HEAD in value] == []


@pytest.mark.parametrize("secret", ["key", "password"])
def test_no_command_line_holds_a_secret(seen: dict[str, Any], secret: str) -> None:
    """Everybody on the machine can read them."""
    wanted = HEAD if secret == "key" else seen["password"]
    assert any("batchpipe" in line and "worker" in line for line in seen["lines"])
    assert [line for line in seen["lines"] if wanted in line] == []


def test_no_log_and_no_answer_holds_the_password_of_the_private_redis(seen: dict[str, Any]) -> None:
    """Not even at log level DEBUG."""
    known = {"home/redis/server.json", "home/redis/redis.conf"}
    assert [name for name in files_with(seen["machine"].folder, seen["password"]) if name not in known] == []


def test_what_holds_the_password_is_for_its_owner_only(seen: dict[str, Any]) -> None:
    folder = seen["machine"].home / "redis"
    assert folder.stat().st_mode & 0o077 == 0


def test_no_answer_holds_the_api_key(seen: dict[str, Any]) -> None:
    for done in seen["outputs"]:
        assert done.code == 0, done.err
        assert HEAD not in done.out + done.err
