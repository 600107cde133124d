"""What it costs to wait for N batches in flight, and how soon their ends are noticed.

    python bench/waiting.py [--in-flight 100 1000 2000 10000] [--seconds 60] [--ends 100] [--others 0]
                            [--no-peers] [--polls-alone] [--plot FILE]

For each N there are a Redis, a Batch server that counts its calls (``_provider.py``), a worker and beat, each a process
of its own, with default settings; and N shards whose batches run. When all have been looked at once, the steady state
is measured for so many seconds: CPU of our processes, calls to the provider, Celery messages, and how long it takes
until a changed status is recorded. Then some batches end, and the time until their result files are fetched is taken.
With ``--polls-alone`` the list is never read. The peers do the same in the same run: a Celery task per batch with
``self.retry(countdown=10)``, and a loop over ``batches.list``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import redis
from _plot import plot
from _processes import BENCH, Stub, cpu_of, messages_sent, redis_bytes, redis_cpu, redis_server, running, stub
from _waited import Waited, charts, show, verdicts

from batchpipe.client.client import Client
from batchpipe.config.loading import load_settings
from batchpipe.model.records import JobRecord, ShardRecord, Stage, State, new_job_id

#: Shards of one job.
SHARDS = 100
#: Batches whose status changes while they run, to see how old the status is that we know.
CHANGES = 20
#: Seconds between two looks of the list loop.
LOOP_SECONDS = 30.0
#: What is counted for the first page of a list.
BEGINNING = "list from its beginning"
#: The default budget of reads of an account.
READS_PER_SECOND = 5.0
#: Seconds that a worker gets until every shard was looked at once, and until all ends are noticed.
WARM_SECONDS, NOTICE_SECONDS = 600.0, 150.0


def batch_json(number: int, made: float, metadata: dict[str, str]) -> dict[str, Any]:
    return {
        "id": f"batch_{number:032d}",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": None,
        "input_file_id": f"file-in-{number:020d}",
        "completion_window": "24h",
        "status": "in_progress",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": int(made),
        "in_progress_at": int(made) + 10,
        "expires_at": int(made) + 86_400,
        "finalizing_at": None,
        "completed_at": None,
        "request_counts": {"total": 1, "completed": 0, "failed": 0},
        "metadata": metadata,
    }


def seed(client: Client, server: Stub, count: int, others: int, folder: Path) -> list[str]:
    """So many shards whose batches run; the ids of these. ``others``: as many batches of others, made after ours."""
    now, batches = time.time(), []
    for first in range(0, count, SHARDS):
        numbers = range(first, min(first + SHARDS, count))
        job, shards = a_job(client, numbers, folder, now)
        batches += [
            batch_json(
                number,
                now - 600 + 600 * number / count,
                {"batchpipe_job": job.id, "batchpipe_shard": str(shard.index), "batchpipe_key": shard.key},
            )
            for number, shard in zip(numbers, shards, strict=True)
        ]
        client.store.jobs.restore(job, shards)
    ours = [str(batch["id"]) for batch in batches]
    batches += [batch_json(1_000_000 + number, now + 1, {}) for number in range(others)]
    for start in range(0, len(batches), 1_000):
        server.tell("batches", batches=batches[start : start + 1_000])
    return ours


def a_job(client: Client, numbers: range, folder: Path, now: float) -> tuple[JobRecord, list[ShardRecord]]:
    job_id = new_job_id()
    workspace = folder / job_id
    workspace.mkdir()
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    row = json.dumps({"custom_id": "r0", "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
    shards = []
    for index, number in enumerate(numbers):
        (workspace / f"{index}.jsonl").write_text(row)
        shards.append(
            ShardRecord(
                job=job_id,
                index=index,
                stage=Stage.CREATED.value,
                file=f"{index}.jsonl",
                rows=1,
                bytes=len(row),
                model="gpt-4o-mini",
                file_id=f"file-in-{number:020d}",
                intent_at=now - 600,
                batch_id=f"batch_{number:032d}",
                created_at=now - 600,
            )
        )
    job = JobRecord(
        id=job_id,
        stage=State.RUNNING.value,
        workspace=str(workspace),
        output=f"{workspace}-out",
        owns=[f"{workspace}-out"],
        queue=client.settings.queue,
        round=1,
        shards=len(shards),
        open=len(shards),
        total=len(shards),
        created_at=now - 600,
    )
    return job, shards


def wait_until(done: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            print(f"  after {seconds:.0f} s not yet: {what}", flush=True)
            return
        time.sleep(0.5)


def measure(
    server: Stub,
    store: redis.Redis,
    processes: list[psutil.Process],
    batches: list[str],
    empty: int,
    options: argparse.Namespace,
    known: Callable[[str], str | None] | None,
) -> Waited:
    """The steady state, then the ends. ``known``: the status of a batch that we have recorded, where there is one."""
    count, chance = len(batches), random.Random(7)
    size = (redis_bytes(store) - empty) / count
    before, start = (cpu_of(processes), redis_cpu(store), server.calls(), messages_sent(store)), time.monotonic()
    changed = chance.sample(batches, min(CHANGES, count))
    ages = [] if known is None else ages_of(server, changed, known, options.seconds)
    time.sleep(max(options.seconds - (time.monotonic() - start), 0))
    minutes = (time.monotonic() - start) / 60
    calls = server.calls()
    waited = Waited(
        cpu=(cpu_of(processes) - before[0]) / minutes,
        redis_cpu=(redis_cpu(store) - before[1]) / minutes,
        lists=(calls.get("list", 0) - before[2].get("list", 0)) / minutes,
        looks=(calls.get(BEGINNING, 0) - before[2].get(BEGINNING, 0)) / minutes,
        retrieves=(calls.get("retrieve", 0) - before[2].get("retrieve", 0)) / minutes,
        messages=(messages_sent(store) - before[3]) / count / minutes * 60,
        bytes=size,
        ages=ages,
        ends=[],
        ended=0,
    )
    ending = chance.sample([name for name in batches if name not in changed], min(options.ends, count // 2))
    patience = NOTICE_SECONDS + (count / READS_PER_SECOND if options.polls_alone else 0)
    waited.ends, waited.ended = ends_of(server, ending, patience), len(ending)
    return waited


def ages_of(server: Stub, changed: list[str], known: Callable[[str], str | None], seconds: float) -> list[float]:
    """Seconds until each of these statuses, changed one after the other, was recorded."""
    server.tell("change", ids=changed, fields={"status": "finalizing"})
    at, left, ages = time.monotonic(), set(changed), []
    while left and time.monotonic() - at < seconds:
        for name in list(left):
            if known(name) == "finalizing":
                left.discard(name)
                ages.append(time.monotonic() - at)
        time.sleep(0.25)
    return ages + [seconds] * len(left)


def ends_of(server: Stub, ending: list[str], patience: float) -> list[float]:
    """Seconds from the end of each to the start of its download, of those that were noticed."""
    ended: dict[str, float] = {}
    for name in ending:
        fields = {
            "status": "completed",
            "output_file_id": "out-ID",
            "completed_at": int(time.time()),
            "request_counts": {"total": 1, "completed": 1, "failed": 0},
        }
        ended[f"out-{name}"] = time.time()
        server.tell("change", ids=[name], fields=fields)
        time.sleep(0.1)
    fetched: dict[str, float] = {}

    def all_are() -> bool:
        fetched.update(server.tell("stats")["fetched"])
        return all(name in fetched for name in ended)

    wait_until(all_are, patience, "all ends noticed")
    return [fetched[name] - at for name, at in ended.items() if name in fetched]


def ours(count: int, options: argparse.Namespace) -> Waited:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bp-", ignore_cleanup_errors=True)))
        server, store = stack.enter_context(stub()), stack.enter_context(redis_server(folder))
        os.environ |= {
            "BATCHPIPE_REDIS_URL": f"unix://{folder}/redis.sock",
            "BATCHPIPE_BROKER_URL": f"redis+socket://{folder}/redis.sock",
            "BATCHPIPE_HOME": f"{folder}/home",
            "OPENAI_API_KEY": "bench",
            "OPENAI_BASE_URL": server.base_url,
            "BATCHPIPE_ACCOUNTS__DEFAULT__LISTS_BATCHES": str(not options.polls_alone),
        }
        client = Client(load_settings())
        client.store.now()
        empty = redis_bytes(store)
        batches = seed(client, server, count, options.others, folder)
        commands = (("worker",),) if options.no_beat else (("worker",), ("beat",))
        processes = [
            stack.enter_context(running(folder / f"{name[0]}.log", sys.executable, "-m", "batchpipe", *name))
            for name in commands
        ]
        places = {name: client.store.shards.place_of_batch(name) for name in batches}

        def known(name: str) -> str | None:
            place = places[name]
            return (
                None
                if place is None
                else client.store.connection.call("hget", client.store.connection.key(*place), "status")
            )

        wait_until(lambda: settled(client, batches), WARM_SECONDS, "every shard looked at")
        time.sleep(options.rest)
        try:
            return measure(server, store, processes, batches, empty, options, known)
        finally:
            if options.logs:
                for log in folder.glob("*.log"):
                    Path(options.logs, f"{count}-{log.name}").write_bytes(log.read_bytes())


def settled(client: Client, batches: list[str]) -> bool:
    """Every shard was looked at, and nothing is overdue."""
    connection = client.store.connection
    overdue = connection.call("zcount", f"{connection.prefix}due", "-inf", f"{client.store.now():.6f}")
    seen = client.store.shards.of_batches("default", [batches[0], batches[-1]])
    return not overdue and all(shard.status for shard in seen.values())


def naive(count: int, options: argparse.Namespace) -> Waited:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bp-", ignore_cleanup_errors=True)))
        server, store = stack.enter_context(stub()), stack.enter_context(redis_server(folder))
        os.environ |= {
            "NAIVE_BROKER": f"redis+socket://{folder}/redis.sock",
            "OPENAI_API_KEY": "bench",
            "OPENAI_BASE_URL": server.base_url,
        }
        empty = redis_bytes(store)
        batches = [batch_json(number, time.time(), {}) for number in range(count)]
        server.tell("batches", batches=batches)
        sys.path.insert(0, str(BENCH))
        command = (
            "celery",
            "-A",
            "_naive",
            "worker",
            "--pool",
            "threads",
            "--concurrency",
            "8",
            "--loglevel",
            "WARNING",
        )
        process = stack.enter_context(running(folder / "naive.log", sys.executable, "-m", *command))
        script = (
            "import sys; from _naive import poll\n"
            "for line in sys.stdin: poll.apply_async((line.strip(), 10.0), countdown=10.0)"
        )
        names = [str(batch["id"]) for batch in batches]
        subprocess.run([sys.executable, "-c", script], input="\n".join(names), text=True, check=True, cwd=BENCH)
        time.sleep(30)
        return measure(server, store, [process], names, empty, options, None)


def list_loop(count: int, others: int) -> float:
    """CPU seconds a minute of a loop over ``batches.list`` of the SDK that looks every 30 s."""
    from openai import OpenAI

    with stub() as server:
        batches = [batch_json(number, time.time(), {}) for number in range(count + others)]
        server.tell("batches", batches=batches)
        client = OpenAI(api_key="bench", base_url=server.base_url, max_retries=0)
        start = time.process_time()
        assert sum(1 for _ in client.batches.list(limit=100)) == count + others
        return (time.process_time() - start) * 60 / LOOP_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[100, 1_000, 2_000, 10_000])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the steady state")
    parser.add_argument("--rest", type=float, default=90.0, help="seconds between the first looks and the measurement")
    parser.add_argument("--ends", type=int, default=100, help="batches that end")
    parser.add_argument("--others", type=int, default=0, help="batches of others, newer than ours")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-beat", action="store_true", help="the worker alone")
    parser.add_argument("--polls-alone", action="store_true", help="no list: each batch is looked at by itself")
    parser.add_argument("--plot", metavar="FILE", help="draw all four as SVG")
    parser.add_argument("--logs", help="a folder to keep the logs in")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("BATCHPIPE_", "OPENAI_"))]:
        del os.environ[name]
    failed, found = False, dict[str, dict[int, Waited]]()
    for count in options.in_flight:
        mine, peer = ours(count, options), None
        found.setdefault("batchpipe", {})[count] = mine
        show("batchpipe", count, mine)
        if not options.no_peers:
            peer = found.setdefault("a task for each batch", {})[count] = naive(count, options)
            show("a Celery task for each batch", count, peer)
            loop = list_loop(count, options.others)
            print(
                f"ratios of CPU, N = {count}: to a task for each batch {mine.cpu / peer.cpu:.3f}, "
                f"to a loop over batches.list {mine.cpu / loop:.1f} ({loop:.2f} CPU-s a minute)",
                flush=True,
            )
        for words in [] if options.polls_alone else verdicts(count, mine, peer):
            failed = True
            print(f"  MISSED: {words}", flush=True)
        if options.plot:
            plot(Path(options.plot), charts(found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
