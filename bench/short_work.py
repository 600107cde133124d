"""How long a job of one row takes while hundreds of uploads lie before it in the queue of one worker.

    python bench/short_work.py [--uploads 600] [--seconds 4] [--concurrency 8]

Each upload lasts so many seconds. The private Redis and the sandbox are of this run alone. Fails above 60 s: most of
that is what a worker needs, on a slow machine, to put aside so many messages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batchpipe.sandbox import Sandbox

#: Of one row: more than a small shard has.
LARGE = 300_000
LIMIT_SECONDS = 60.0


def make_requests(path: Path, rows: int, size: int) -> Path:
    with path.open("w") as file:
        for number in range(rows):
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * size}]}
            row = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")
    return path


def measure(folder: Path, options: argparse.Namespace) -> int:
    with Sandbox(validating_seconds=0.1) as sandbox:
        sandbox.faults.add("slow_upload", bytes=LARGE, seconds=options.seconds)
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHPIPE_", "OPENAI_"))}
        environment = {
            **plain,
            "OPENAI_BASE_URL": sandbox.base_url,
            "OPENAI_API_KEY": "sandbox",
            "BATCHPIPE_HOME": str(folder / "home"),
            "BATCHPIPE_POLL_MIN_SECONDS": "1",
            "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",
        }

        def run(*arguments: str) -> str:
            command = [sys.executable, "-m", "batchpipe", *arguments]
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
            return done.stdout.strip()

        command = [sys.executable, "-m", "batchpipe", "worker", "--concurrency", str(options.concurrency)]
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            large = make_requests(folder / "large.jsonl", options.uploads, LARGE)
            job = run("submit", str(large), "-o", "large", "--max-rows", "1")
            while "running" not in run("status", job).splitlines()[0]:
                time.sleep(1)
            start = time.monotonic()
            small = make_requests(folder / "small.jsonl", 1, 10)
            run("wait", run("submit", str(small), "-o", "small"))
            seconds = time.monotonic() - start
            shards = json.loads(run("status", job, "--json"))["shards"]
        finally:
            worker.kill()
            worker.wait()
    left = sum(shard["stage"] == "planned" for shard in shards)
    verdict = "ok" if seconds <= LIMIT_SECONDS else "TOO SLOW"
    print(f"a job of one row took {seconds:.1f} s, while {left} of {options.uploads} uploads still waited: {verdict}")
    return int(seconds > LIMIT_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uploads", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=4.0, help="that each of them lasts")
    parser.add_argument("--concurrency", type=int, default=8, help="of the one worker")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchpipe-bench-") as folder:
        return measure(Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
