"""Webhooks: a thousand a second for ten seconds, beside a bare receiver; and how soon after its end a batch is fetched.

    python bench/webhooks.py [--rate 1000] [--seconds 10] [--jobs 100]

First: so many shards are in flight on a Redis of their own, and as many webhooks are sent at that rate over 32 kept
connections to `batchpipe webhooks`. The peer is a process with the same server whose app only checks each signature,
with the SDK's `unwrap`, and answers: nobody can do less. Fails if one is not answered with 200, if a shard is neither
due nor published afterwards, or if the CPU for each is more than 4 times that of the peer.

Then: so many jobs wait at a sandbox for their batches, a worker beside it, and a poll would come after ten minutes. Ten
a second end; from each end to the start of its download. Fails if p99 is above a second times the load of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from _processes import cpu_of

from batchpipe.client.client import Client
from batchpipe.config.loading import load_settings
from batchpipe.local_redis import acquire
from batchpipe.model.records import JobRecord, Move, ShardRecord, Stage, State, new_job_id
from batchpipe.sandbox import Sandbox
from batchpipe.store import JobLease, ShardLease, Store

SECRET = "whsec_" + base64.b64encode(b"b" * 32).decode()
CONNECTIONS, FACTOR = 32, 4.0
PER_JOB = 1_000

#: The peer: what nobody can leave out.
BARE = """
import socket, sys, openai, uvicorn
sdk = openai.OpenAI(api_key="none", webhook_secret=sys.argv[1])

async def app(scope, receive, send):
    body = (await receive())["body"]
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    sdk.webhooks.unwrap(body, headers)
    length = (b"content-length", b"2")
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": b"{}"})

bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
bound.bind(("127.0.0.1", 0))
bound.listen(1024)
print(f"webhooks at http://127.0.0.1:{bound.getsockname()[1]}/", file=sys.stderr, flush=True)
config = uvicorn.Config(app, http="h11", loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False)
uvicorn.Server(config).run([bound])
"""


# -- a flood -------------------------------------------------------------------------------------------------------


def in_flight(store: Store, count: int) -> list[str]:
    """Jobs with so many shards in all, each with a batch and asleep. Returns the ids of the jobs."""
    jobs = []
    for start in range(0, count, PER_JOB):
        shards = min(PER_JOB, count - start)
        job = JobRecord(id=new_job_id(), epoch=1, task_ids=["p"], output=f"/out/{start}", owns=[f"/out/{start}"])
        store.jobs.submit(job)
        stages = [State.PENDING.value]
        lease = store.leases.claim_job(job.id, 1, stages, deadline=300, enter=State.PREPARING.value)
        assert isinstance(lease, JobLease)
        ids = ["u", "c", "p", "d"]
        made = [ShardRecord(job=job.id, index=n, epoch=1, rows=2, file="f", task_ids=ids) for n in range(shards)]
        store.leases.plan(lease, {"round": 1, "total": 2 * shards}, made, ["m"])
        for shard in made:
            held = store.leases.claim_shard(job.id, shard.index, 1, [Stage.PLANNED], deadline=300)
            assert isinstance(held, ShardLease)
            store.leases.advance(held, Move(stage=Stage.UPLOADED), tries="reset", merge_ids=["m"])
            held = store.leases.claim_shard(job.id, shard.index, 1, [Stage.UPLOADED], deadline=300)
            assert isinstance(held, ShardLease)
            name = f"batch_{start + shard.index}"
            store.shards.settle(shard, name, token=held.token, after=600.0, changes={})
        jobs.append(job.id)
    return jobs


def request(number: int) -> bytes:
    body = json.dumps(
        {
            "id": f"evt_{number}",
            "object": "event",
            "created_at": int(time.time()),
            "type": "batch.completed",
            "data": {"id": f"batch_{number}"},
        }
    ).encode()
    stamp = str(int(time.time()))
    signed = hmac.new(b"b" * 32, f"wh_{number}.{stamp}.".encode() + body, hashlib.sha256).digest()
    head = (
        "POST /webhooks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nwebhook-id: wh_{number}\r\nwebhook-timestamp: {stamp}\r\n"
        f"webhook-signature: v1,{base64.b64encode(signed).decode()}\r\n\r\n"
    )
    return head.encode() + body


async def flood(port: int, count: int, rate: float) -> tuple[Counter[int], list[float], float]:
    """Send webhooks at this rate. Returns answers by status, seconds from when each was to be sent, and all seconds."""
    statuses: Counter[int] = Counter()
    late: list[float] = []
    numbers = iter(range(count))
    loop = asyncio.get_running_loop()
    begun = loop.time()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            planned = begun + number / rate
            await asyncio.sleep(max(planned - loop.time(), 0))
            writer.write(request(number))
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            statuses[int(head.split(b" ", 2)[1])] += 1
            late.append(loop.time() - planned)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return statuses, late, loop.time() - begun


@contextmanager
def receiver(command: list[str], folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A process that receives webhooks; its port."""
    log = folder / "receiver.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        while not (found := re.search(r"webhooks at http://[\d.]+:(\d+)/", log.read_text())):
            if process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.05)
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def measured(command: list[str], folder: Path, count: int, rate: float) -> float:
    """CPU ms of the receiver for each webhook. Prints what was seen; exits if one was not answered."""
    with receiver(command, folder) as (port, process):
        asyncio.run(flood(port, 0, rate))
        before = process.cpu_times()
        statuses, late, seconds = asyncio.run(flood(port, count, rate))
        after = process.cpu_times()
        cpu: float = 1000 * (after.user + after.system - before.user - before.system) / count
        cuts = quantiles(late, n=100)
        rss = process.memory_info().rss / 1e6
        print(
            f"{count} in {seconds:.1f} s: {dict(statuses)}; answered after {1000 * median(late):.1f} ms (p50), "
            f"{1000 * cuts[98]:.1f} ms (p99); {cpu:.2f} ms of CPU each, {rss:.0f} MB",
            flush=True,
        )
        if statuses != {200: count}:
            sys.exit("not all were answered with 200")
    return cpu


def run_flood(folder: Path, rate: float, seconds: float) -> bool:
    count = int(rate * seconds)
    settings = load_settings()
    store = Store.connect(settings.redis_address())
    jobs = in_flight(store, count)
    print("bare receiver, the SDK's unwrap: ", end="", flush=True)
    bare = measured([sys.executable, "-c", BARE, SECRET], folder, count, rate)
    print("batchpipe webhooks: ", end="", flush=True)
    ours = measured([sys.executable, "-m", "batchpipe", "webhooks", "--port", "0"], folder, count, rate)
    shards = [shard for job in jobs for shard in store.shards.of_job(store.jobs.get(job))]
    told = sum(shard.news_at is not None for shard in shards)
    published = sum(shard.epoch > 1 for shard in shards)
    due = len(store.due.overdue(count))
    print(
        f"{told} of {count} shards know of their end; {published} were published at once, {due} are left to the sweep"
    )
    print(f"{ours / bare:.2f} times the CPU of the bare receiver (at most {FACTOR:g})")
    return told == count and published + due >= count and ours <= FACTOR * bare


# -- from end to download ------------------------------------------------------------------------------------------


def run_ends(folder: Path, jobs: int) -> bool:
    with receiver([sys.executable, "-m", "batchpipe", "webhooks", "--port", "0"], folder) as (port, receiving):
        url = f"http://127.0.0.1:{port}/webhooks"
        options: dict[str, Any] = {"validating_seconds": 0.0, "finalizing_seconds": 0.0}
        with Sandbox(webhook_url=url, webhook_secret=SECRET, **options) as sandbox:
            stuck = sandbox.faults.add("stuck")
            os.environ["OPENAI_BASE_URL"] = sandbox.base_url
            with (folder / "worker.log").open("wb") as log:
                worker = subprocess.Popen([sys.executable, "-m", "batchpipe", "worker"], stdout=log, stderr=log)
            try:
                return ends(sandbox, folder, jobs, receiving, psutil.Process(worker.pid))
            finally:
                worker.terminate()
                worker.wait()
                sandbox.faults.remove(stuck)


def ends(sandbox: Sandbox, folder: Path, jobs: int, receiving: psutil.Process, working: psutil.Process) -> bool:
    client = Client(load_settings())
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}
    rows = [{"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": body}]
    made = [client.submit(rows, output=folder / f"out{number}") for number in range(jobs)]
    while sum(batch.status == "in_progress" for batch in sandbox.batches.all()) < jobs:
        time.sleep(0.2)
    time.sleep(2)
    ended: dict[str, float] = {}
    ends_of: dict[str, float] = {}
    took = [-cpu_of([receiving]), -cpu_of([working]), -time.process_time()]
    for batch in sandbox.batches.all():
        at = ends_of[batch.id] = time.time()
        ended[sandbox.batches.end(batch.id, "completed")["output_file_id"]] = at
        time.sleep(0.1)
    for job in made:
        job.wait(timeout=120)
    took = [
        before + after
        for before, after in zip(took, [cpu_of([receiving]), cpu_of([working]), time.process_time()], strict=True)
    ]
    fetched: dict[str, float] = {}
    read: dict[str, float] = {}
    for call in sandbox.calls:
        if (found := re.fullmatch(r"/v1/files/(\S+)/content", call.path)) and found[1] not in fetched:
            fetched[found[1]] = call.at
        if (found := re.fullmatch(r"/v1/batches/(\S+)", call.path)) and call.at >= ends_of.get(found[1], 0.0):
            read.setdefault(found[1], call.at)
    reading = sorted(read[name] - at for name, at in ends_of.items())
    seconds = sorted(fetched[name] - at for name, at in ended.items())
    load = max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)
    p99 = seconds[int(0.99 * (len(seconds) - 1))]
    print(
        f"{jobs} ends, ten a second: download begins {median(seconds):.2f} s (p50), {p99:.2f} s (p99), "
        f"{seconds[-1]:.2f} s (most) later, and its batch is read after {median(reading):.2f} s (p50); load of this "
        f"machine {load:.1f} a core. CPU for each end: receiver {1000 * took[0] / jobs:.0f} ms, worker "
        f"{1000 * took[1] / jobs:.0f} ms, sandbox and this script {1000 * took[2] / jobs:.0f} ms"
    )
    return p99 <= load


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--jobs", type=int, default=100)
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("BATCHPIPE_", "OPENAI_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="batchpipe-bench-", ignore_cleanup_errors=True) as name:
        handle = acquire(Path(name) / "home", environment={"PATH": os.environ["PATH"]})
        os.environ |= {
            "BATCHPIPE_HOME": f"{name}/home",
            "BATCHPIPE_REDIS_URL": f"{handle.server.url.rpartition('/')[0]}/1",
            "OPENAI_API_KEY": "sandbox",
            "OPENAI_WEBHOOK_SECRET": SECRET,
            "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",
            "BATCHPIPE_POLL_MIN_SECONDS": "600",
        }
        good = run_flood(Path(name), options.rate, options.seconds)
        os.environ["BATCHPIPE_REDIS_URL"] = handle.server.url
        good = run_ends(Path(name), options.jobs) and good
        handle.close()
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
