"""What ``waiting.py`` runs beside itself: a Batch server, a Redis and workers, each a process; and what they take."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis

from batchpipe.local_redis import find_server

BENCH = Path(__file__).parent


class Stub:
    """The Batch server, and what it was asked."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._control = f"http://127.0.0.1:{port}/control"

    def tell(self, what: str, **fields: Any) -> Any:
        data = json.dumps(fields).encode()
        with urllib.request.urlopen(f"{self._control}/{what}", data=data, timeout=60) as answer:
            return json.loads(answer.read())

    def calls(self) -> dict[str, int]:
        return dict(self.tell("stats")["calls"])


@contextmanager
def stub() -> Iterator[Stub]:
    command = [sys.executable, str(BENCH / "_provider.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Stub(int(process.stdout.readline()))
        finally:
            process.terminate()


@contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    found = find_server()
    if found is None:
        sys.exit("no redis-server was found")
    path = f"{folder}/redis.sock"
    options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with subprocess.Popen([found[1], *options], stdout=subprocess.DEVNULL) as process:
        client = redis.Redis(unix_socket_path=path, decode_responses=True)
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        try:
            yield client
        finally:
            process.terminate()


@contextmanager
def running(log: Path, *command: str) -> Iterator[psutil.Process]:
    with log.open("ab") as file, subprocess.Popen(command, stdout=file, stderr=file, cwd=BENCH) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def cpu_of(processes: list[psutil.Process]) -> float:
    found = 0.0
    for process in processes:
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            found += times.user + times.system
    return found


def redis_cpu(client: redis.Redis) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


def redis_bytes(client: redis.Redis) -> int:
    """What Redis holds, without the scripts: they take the same for one shard and for all."""
    info = client.info("memory")
    return int(info["used_memory"]) - int(info.get("used_memory_scripts_eval", 0))


def messages_sent(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))
