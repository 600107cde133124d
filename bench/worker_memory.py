"""Peak memory of a real worker during each stage of a 200 MB job, above what it holds when idle; the limit is 64 MB.

    python bench/worker_memory.py [--mb 200]

A real `batchpipe worker` works on one shard against a sandbox in a process of its own; the real SDK uploads and
downloads. The stage is read from the job's records while the worker's resident set is sampled, so a peak may be
booked on the stage next to it; the last line is the peak of all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from batchpipe.client.client import Client
from batchpipe.config.loading import load_settings
from batchpipe.model.records import JobRecord, Stage, State

LIMIT_MB = 64
TEXT = "A line of plain text that goes on for a while, as prompts and answers do. "
DOING = {Stage.PLANNED: "upload", Stage.UPLOADED: "create", Stage.CREATED: "poll", Stage.ENDED: "download"}


def make_input(path: Path, megabytes: int) -> None:
    """About 4 kB a row; the sandbox's answers are about as long as it is allowed to make them."""
    rows = min(megabytes * 245, 50_000)
    text = TEXT * (megabytes * 960_000 // rows // len(TEXT) - 2)
    with open(path, "w") as file:
        for row in range(rows):
            body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": text}], "max_tokens": 4_000}
            line = {"custom_id": f"row-{row:08d}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


@contextmanager
def process(*arguments: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `python -m ...` for the length of the block."""
    with open(log, "wb") as out:
        command = [sys.executable, "-m", *arguments]
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)


def wait_for(path: Path, text: str, seconds: float = 30) -> str:
    """The content of a file once it has this text."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if path.exists() and text in (content := path.read_text(errors="replace")):
            return content
        time.sleep(0.05)
    raise SystemExit(f"{path.name} did not say {text!r}")


class Sampler:
    """Peak resident set of a process, by what it is doing."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.doing = "idle"
        self.peaks: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.peaks[self.doing] = max(self.peaks.get(self.doing, 0.0), self._process.memory_info().rss / 1e6)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def doing(client: Client, job: JobRecord) -> str:
    if job.state is State.FINALIZING:
        return "merge"
    if job.state is not State.RUNNING:
        return "prepare"
    stages = [Stage(shard.stage) for shard in client.store.shards.of_job(job)]
    return DOING.get(stages[0], "merge") if stages else "prepare"


def measure(folder: Path, megabytes: int) -> int:
    """Run the job and print the table; 1 if the limit was passed."""
    source, ready, log = folder / "in.jsonl", folder / "ready", folder / "worker.log"
    make_input(source, megabytes)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHPIPE_", "OPENAI_"))}
    sandbox = ["batchpipe.sandbox", "--port", "0", "--ready-file", str(ready), "--data-dir", str(folder / "sandbox")]
    with process(*sandbox, environment=environment, log=folder / "sandbox.log"):
        os.environ.update(
            OPENAI_BASE_URL=wait_for(ready, "http").strip(),
            OPENAI_API_KEY="bench",
            BATCHPIPE_HOME=str(folder / "home"),
            BATCHPIPE_POLL_MIN_SECONDS="1",
        )
        client = Client(load_settings(env_file=None))
        environment = {**os.environ, "BATCHPIPE_REDIS_URL": client.settings.redis_address()}
        with process("batchpipe", "worker", environment=environment, log=log) as worker:
            wait_for(log, "ready.")
            time.sleep(2)  # what it loads in the background is part of being idle
            sampler = Sampler(worker.pid)
            time.sleep(1)
            job = client.submit(source, output=folder / "out")
            client.follow(job.id, tick=lambda job: setattr(sampler, "doing", doing(client, job.record)), pause=0.02)
            sampler.stop()
        result = client.get_job(job.id).result()
    size = (folder / "out" / "output.jsonl").stat().st_size
    print(f"{source.stat().st_size / 1e6:.0f} MB in, {size / 1e6:.0f} MB out, {result.ok} of {result.total} rows ok")
    return report(sampler.peaks)


def report(peaks: dict[str, float]) -> int:
    idle, highest = peaks.pop("idle"), max(peaks.values())
    print(f"{'stage':<10} {'idle MB':>8} {'peak MB':>8} {'delta MB':>9} {'limit':>6}")
    for stage, peak in [*peaks.items(), ("all", highest)]:
        print(f"{stage:<10} {idle:>8.0f} {peak:>8.0f} {peak - idle:>9.1f} {LIMIT_MB:>6}")
    return int(highest - idle > LIMIT_MB)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=int, default=200, help="size of the input")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchpipe-bench-") as folder:
        return measure(Path(folder), options.mb)


if __name__ == "__main__":
    sys.exit(main())
