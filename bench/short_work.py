"""How long a job of one row takes while hundreds of uploads lie before it in the queue of one worker.

    python bench/short_work.py [--uploads 0 60 600] [--seconds 4] [--size 300000] [--pool threads] [--concurrency N]

Each upload is of so many bytes and lasts so many seconds. For each number of uploads there is a worker of its own, with
a private Redis and a sandbox; one job goes first, which loads what a worker loads once. Then, as soon as the uploads
are published, three jobs of one row, one after the other: the slowest counts. Fails if that takes more than three times
as long as with the fewest uploads, plus 3 s.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchpipe.client.client import Client
from batchpipe.config.loading import load_settings
from batchpipe.model.records import State
from batchpipe.sandbox import Sandbox

FACTOR, MORE_SECONDS = 3.0, 3.0
#: Jobs of one row that are measured.
JOBS = 3


def make_requests(path: Path, rows: int, size: int) -> Path:
    with path.open("w") as file:
        for number in range(rows):
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * size}]}
            row = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")
    return path


@contextmanager
def worker(folder: Path, options: argparse.Namespace) -> Iterator[None]:
    concurrency = () if options.concurrency is None else ("--concurrency", str(options.concurrency))
    ours = ("batchpipe", "worker") if options.pool != "gevent" else ("celery", "-A", "batchpipe.worker", "worker")
    command = [sys.executable, "-m", *ours, "--pool", options.pool, *concurrency]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def measure(folder: Path, uploads: int, options: argparse.Namespace) -> float:
    """Seconds of the slowest job of one row behind so many uploads."""
    small = make_requests(folder / "small.jsonl", 1, 10)
    client = Client(load_settings())

    def seconds_of(name: str) -> float:
        start = time.monotonic()
        client.submit(small, output=folder / name).wait(timeout=600)
        return time.monotonic() - start

    with worker(folder, options):
        while not client.store.queues.listening():
            time.sleep(0.1)
        seconds_of("first")
        if not uploads:
            return max(seconds_of(f"small{number}") for number in range(JOBS))
        large = client.submit(make_requests(folder / "large.jsonl", uploads, options.size), max_rows=1)
        while client.store.jobs.get(large.id).stage != State.RUNNING:
            time.sleep(0.1)
        slowest = max(seconds_of(f"small{number}") for number in range(JOBS))
        left = sum(shard.file_id is None for shard in client.store.shards.of_job(client.store.jobs.get(large.id)))
    if left < uploads / 3:
        sys.exit(f"only {left} of {uploads} uploads still waited: let each last longer (--seconds)")
    return slowest


def run(uploads: int, options: argparse.Namespace) -> float:
    with (
        Sandbox(validating_seconds=0.1) as sandbox,
        tempfile.TemporaryDirectory(prefix="batchpipe-bench-", ignore_cleanup_errors=True) as name,
    ):
        sandbox.faults.add("slow_upload", bytes=options.size, seconds=options.seconds)
        os.environ |= {"OPENAI_BASE_URL": sandbox.base_url, "BATCHPIPE_HOME": f"{name}/home"}
        return measure(Path(name), uploads, options)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uploads", type=int, nargs="+", default=[0, 60, 600])
    parser.add_argument("--seconds", type=float, default=4.0, help="that each of them lasts")
    parser.add_argument("--size", type=int, default=300_000, help="bytes of each: more than a small shard has")
    parser.add_argument("--pool", default="threads", help="of the worker")
    parser.add_argument("--concurrency", type=int, help="of the worker, in place of its default")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("BATCHPIPE_", "OPENAI_"))]:
        del os.environ[name]
    os.environ |= {
        "OPENAI_API_KEY": "sandbox",
        "BATCHPIPE_POLL_MIN_SECONDS": "1",
        "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",
    }
    logging.getLogger("uvicorn.error").disabled = True  # of uploads that are cut off at the end
    idle, failed = 0.0, False
    for uploads in sorted(options.uploads):
        seconds = run(uploads, options)
        idle = idle or seconds
        verdict = "ok" if seconds <= FACTOR * idle + MORE_SECONDS else "TOO SLOW"
        failed |= verdict != "ok"
        print(f"behind {uploads} uploads: {seconds:.1f} s, {seconds / idle:.1f} times as long: {verdict}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
