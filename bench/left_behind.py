"""What is left behind: messages in queues that nobody works on, lines of workspaces.jsonl, files of killed workers.

    python bench/left_behind.py [--days 30] [--jobs 20000]

On a Redis of its own, which is the broker, too, with a simulated clock. A queue has 100 shards that wait; every half
an hour there is a sweep, and beat sends what it sends. Workers are killed (they exit at once) in the middle of
preparing, downloading and merging, and their jobs are ended by others. Exits 1 if something grows that should not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, cast

from batchpipe.client.client import Client
from batchpipe.config.settings import Settings
from batchpipe.local_redis import acquire
from batchpipe.model.records import JobRecord, ShardRecord, State, new_job_id
from batchpipe.pipeline.manifest import PRUNED_BYTES, WORKSPACES, basics, note_workspace, prune_workspaces
from batchpipe.pipeline.sweep import sweep
from batchpipe.store import JobLease, Lease, Store
from batchpipe.tasks import celery_tasks as tasks
from batchpipe.tasks.runtime import runtime
from batchpipe.testing import FakeOpenAI, Pump
from batchpipe.worker.schedule_tasks import schedules

STEP_SECONDS, SHARDS = 1_800.0, 100
#: What stays of an ended job in its workspace.
STAYS = {"results.idx", "manifest.json"}
KILLED_IN = ("prepare", "download", "merge")
#: A queue that a worker listens on and takes nothing from gets a message again, for each shard and each task of beat,
#: with pauses that grow to a day: so many within the first day.
MOST_ON_FIRST_DAY = 10


def queue(url: str, folder: Path, name: str, days: int, *, listened: bool) -> Iterator[dict[str, Any]]:
    """Messages and bytes of a queue that nobody takes from, day by day."""
    settings = Settings(_env_file=None, redis_url=url, prefix=f"{{{name}}}:", home=folder / name, queue=name)
    store, runner, ahead = Client(settings).store, runtime(settings).job_runner, 0.0
    store.connection.skew = lambda: ahead
    job = JobRecord(id=new_job_id(), epoch=1, task_ids=["p"], output="/o", owns=[f"/o/{name}"], queue=name)
    store.jobs.submit(job)
    lease = store.leases.claim_job(job.id, 1, [State.PENDING.value], deadline=9_999, enter=State.PREPARING.value)
    assert isinstance(lease, JobLease), lease
    shards = (ShardRecord(job=job.id, index=n, epoch=1, rows=1, task_ids=["u", "c", "p", "d"]) for n in range(SHARDS))
    store.leases.plan(lease, {"round": 1}, shards, ["m"])
    for index in range(SHARDS):
        runner.republish(job.id, index)
    for step in range(1, int(days * 86_400 / STEP_SECONDS) + 1):
        if listened:
            store.queues.note_listening("stuck@host", [name])
        sweep(runner, listing=False)
        for task in (tasks.sweep, schedules):
            task.apply_async(queue=name, headers={"celery_beat_task": True})
        ahead += STEP_SECONDS
        if step * STEP_SECONDS % 86_400 == 0:
            size = store.connection.client.memory_usage(name, samples=0) or 0
            ours = [
                key
                for key in store.connection.client.scan_iter(count=10_000)
                if key.startswith(store.connection.prefix)
            ]
            records = sum(store.connection.client.memory_usage(key, samples=0) or 0 for key in ours)
            day = int(step * STEP_SECONDS / 86_400)
            yield {"day": day, "messages": store.connection.client.llen(name), "bytes": size, "records": records}


def workspaces(folder: Path, jobs: int) -> dict[str, int]:
    """The list of a host that has submitted so many jobs, of which twenty are open at any time."""
    settings = Settings(_env_file=None, redis_url="redis://localhost", home=folder)
    path, submitted, most = folder / WORKSPACES, list[str](), 0
    pruned, size = 0, 0
    for _ in range(jobs):
        place = f"/srv/batchpipe/pipeline/results/{len(submitted):08d}"
        job = JobRecord(id=new_job_id(), output=place, input=f"{place}.jsonl", workspace=f"{place}/.batchpipe/x")
        submitted.append(job.id)
        note_workspace(settings, job, record=basics(job))
        note_workspace(settings, job)  # as prepare does
        still_open = set(submitted[-20:])
        prune_workspaces(settings, lambda ids, known=still_open: {i: i not in known for i in ids}, time.time())  # type: ignore[misc]
        before, size = size, path.stat().st_size
        pruned, most = pruned + (size < before), max(most, size)
    with path.open("rb") as file:
        return {"jobs": jobs, "most_bytes": most, "bytes": size, "lines": sum(1 for _ in file), "made_shorter": pruned}


def kills(folder: Path, url: str, days: int) -> Iterator[dict[str, int]]:
    """Files that are left by workers which were killed, when others have ended their jobs."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    tempfile.tempdir = str(temporary)
    store = Store.connect(url, prefix="{kills}:", ttl_seconds=86_400)
    pump, dice, killed = Pump(folder, api=FakeOpenAI(autofinish=True), store=store), random.Random(7), 0
    for day in range(1, days + 1):
        for _ in range(2):
            pump.submit([request(number) for number in range(1_200)], max_rows=500)
        killed += drive(pump, dice)
        working = [path for path in folder.rglob(".batchpipe/**/*") if path.is_file() and path.name not in STAYS]
        in_temporary = sum(1 for path in temporary.rglob("*") if path.is_file())
        at_home = sum(1 for path in (folder / "home").rglob("*") if path.is_file())
        yield {"day": day, "killed": killed, "working": len(working), "temporary": in_temporary, "home": at_home}
    tempfile.tempdir = None


def drive(pump: Pump, dice: random.Random) -> int:
    """Bring all jobs to their end; some turns die on the way. Answers how many."""
    killed = 0
    while pump.waiting or pump.store.connection.client.zcard(f"{pump.store.connection.prefix}due"):
        due = sorted((one for one in pump.waiting if one.at <= pump.at), key=lambda one: one.at)
        if not due:
            pump.advance(30.0)
            sweep(pump.job_runner, listing=False)
        elif due[0].link in KILLED_IN and dice.random() < 0.4:
            killed += dies(pump, dice.randint(1, 4))
            pump.waiting.remove(due[0])  # with its worker; the sweep publishes it again
        else:
            pump.step()
    return killed


def dies(pump: Pump, at: int) -> bool:
    """Take the next turn in a process that exits when the turn has got on so many times. Answers whether it did."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    numbers, check = count(1), Lease.check

    def last_breath(lease: Lease) -> None:
        if next(numbers) >= at:
            os._exit(9)
        check(lease)

    cast(Any, Lease).check = last_breath
    try:
        pump.step()
    finally:
        os._exit(0)


def request(number: int) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Tell me about it"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=20_000)
    options = parser.parse_args()
    bad, shown = list[str](), {1, 2, 3, 7, 14, 21, options.days}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        handle = acquire(folder / "redis-home", environment={})
        for kind, listened in (("dead", False), ("stuck", True)):
            days = list(queue(handle.server.url, folder, kind, options.days, listened=listened))
            print(f"queue {kind}:", *(json.dumps(row) for row in days if row["day"] in shown), sep="\n  ", flush=True)
            grown = days[-1]["messages"] - days[0]["messages"]
            most = (MOST_ON_FIRST_DAY + options.days) * (SHARDS + 2) if listened else 0
            bad += [f"queue {kind}"] if grown > most else []
        listed = workspaces(folder / "list", options.jobs)
        print("workspaces.jsonl:", json.dumps(listed), flush=True)
        bad += ["workspaces.jsonl"] if listed["most_bytes"] > PRUNED_BYTES + 10_000 else []
        left = list(kills(folder / "kills", handle.server.url, options.days))
        print("killed workers:", *(json.dumps(row) for row in left if row["day"] in shown), sep="\n  ", flush=True)
        bad += ["files"] if any(row["working"] or row["temporary"] for row in left) else []
        handle.close()
    print("grows:", ", ".join(bad) or "nothing that should not")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
