"""Peak memory of each step on a 200 MB file, above what the idle worker has; the limit is 64 MB.

    python bench/memory.py [--mb 200] [--keep DIR]

Each step runs in a process of its own, which first imports what a worker has imported, openai and celery too.
A thread samples the resident set; where the system tells the true peak, that counts. The upload, and the whole in a
real worker, are in worker_memory.py.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import psutil

LIMIT_MB = 64
STEPS = ("validate", "prepare", "prepare-models", "download", "merge")
ENDPOINT = "/v1/chat/completions"
TEXT = "A line of plain text that goes on for a while, as prompts and answers do. "


def make_files(folder: Path, megabytes: int) -> int:
    """A request file and a shuffled output file of this size each; returns the number of rows."""
    size, rows = megabytes * 1_000_000, megabytes * 250
    text = TEXT * (size // rows // len(TEXT) - 3)
    with open(folder / "requests.jsonl", "w") as file, open(folder / "models.jsonl", "w") as mixed:
        for row in range(rows):
            for target, model in ((file, "gpt-5-mini"), (mixed, f"model-{row % 100}")):
                body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}]}
                line: dict[str, object] = {
                    "custom_id": f"row-{row:08d}",
                    "method": "POST",
                    "url": ENDPOINT,
                    "body": body,
                }
                target.write(json.dumps(line) + "\n")
    order = list(range(rows))
    random.Random(7).shuffle(order)
    with open(folder / "output.jsonl", "w") as file:
        for row in order:
            usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
            reply = {"choices": [{"message": {"content": text}}], "usage": usage}
            answer: dict[str, object] = {"id": "x", "custom_id": f"row-{row:08d}", "error": None}
            file.write(json.dumps({**answer, "response": {"status_code": 200, "body": reply}}) + "\n")
    return rows


class DiskApi:
    """A provider whose files lie on this disk; it streams them like the real one."""

    def file_bytes(self, file_id: str) -> int | None:
        return Path(file_id).stat().st_size

    def download(self, file_id: str, sink: BinaryIO, check: Callable[[], None]) -> int:
        got = 0
        with open(file_id, "rb") as file:
            while block := file.read(1 << 16):
                got += sink.write(block)
                check()
        return got

    def retrieve(self, batch_id: str) -> Any:
        raise NotImplementedError("nothing is late here")


def nothing() -> None:
    """A lease that is never lost."""


def count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def run_step(step: str, folder: Path) -> None:
    """Run one step; its result stays in ``folder`` for the next."""
    from batchpipe.model.records import Counts, JobRecord, ShardRecord
    from batchpipe.pipeline.steps.download import download
    from batchpipe.pipeline.steps.merge import merge
    from batchpipe.pipeline.steps.prepare import prepare, validate
    from batchpipe.storage import Folder

    workspace = Folder(str(folder / "workspace"), private=True)
    name = "models.jsonl" if step == "prepare-models" else "requests.jsonl"
    job = JobRecord(id="job_bench", input=str(folder / name), output=str(folder / "out"))
    if step == "validate":
        validate(job.input, ENDPOINT)
    elif step in ("prepare", "prepare-models"):
        token = "many" if step == "prepare-models" else "bench"
        prepare(job, workspace, token, check=nothing)
    rows = count_lines(folder / "requests.jsonl")
    shard = ShardRecord(job=job.id, index=0, rows=rows, file="shards/00000-bench.jsonl")
    if step == "download":
        shard = shard.evolve(counts=Counts(completed=rows), output_file_id=str(folder / "output.jsonl"))
        api: Any = DiskApi()
        move = download(job, shard, workspace, api, "bench", now=0.0, files_patience=60.0, check=nothing)
        assert move.changes["ok"] == rows, move.changes
    if step == "merge":
        shard = shard.evolve(ok=rows, failed=0, missing=0, collected_file="collected/00000-1-bench.rows")
        merge(job.evolve(order_files=["order-bench"]), [shard], workspace, Folder(job.output), check=nothing)


def measure(step: str, folder: Path) -> dict[str, float]:
    """MB idle and at the peak, and seconds, in this process."""
    import celery  # noqa: F401
    import openai  # noqa: F401

    import batchpipe.pipeline.steps.download
    import batchpipe.pipeline.steps.merge
    import batchpipe.pipeline.steps.prepare  # noqa: F401

    process, stop = psutil.Process(), threading.Event()
    idle = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.monotonic()
    run_step(step, folder)
    seconds = time.monotonic() - start
    stop.set()
    sampler.join()
    if sys.platform == "linux":
        peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"idle": idle / 1e6, "peak": peak / 1e6, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200, help="size of the input and of the output")
    parser.add_argument("--keep", help="work in this folder and leave it")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measure(options.step, Path(options.keep))))
        return 0
    with tempfile.TemporaryDirectory(prefix="batchpipe-bench-") as temporary:
        folder = Path(options.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = make_files(folder, options.mb)
        print(f"{options.mb} MB of requests and of output, {rows} rows")
        print(f"{'step':<15} {'idle MB':>8} {'peak MB':>8} {'delta MB':>9} {'limit':>6} {'seconds':>8}")
        return max(report(step, folder) for step in STEPS)


def report(step: str, folder: Path) -> int:
    """Print the line of one step; 1 if it took more than the limit."""
    command = [sys.executable, __file__, "--step", step, "--keep", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    delta = found["peak"] - found["idle"]
    idle, peak, seconds = found["idle"], found["peak"], found["seconds"]
    print(f"{step:<15} {idle:>8.0f} {peak:>8.0f} {delta:>9.1f} {LIMIT_MB:>6} {seconds:>8.2f}")
    return int(delta > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
