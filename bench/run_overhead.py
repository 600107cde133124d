"""What `batchpipe run` takes over a hand-written SDK script: at most 1.15 times as long, plus 3 seconds of start.

    python bench/run_overhead.py [--rows 500] [--rounds 5]

Both do the same against one sandbox process: upload, create, look at the batch once a second, download. They take
turns, each in a process of its own. Exits 1 if the median is above the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

FACTOR, START_SECONDS = 1.15, 3.0
POLL_SECONDS = 1.0
ENDPOINT = "/v1/chat/completions"


def make_requests(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for row in range(rows):
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Tell me about number {row}"}]}
            file.write(json.dumps({"custom_id": f"row-{row}", "method": "POST", "url": ENDPOINT, "body": body}) + "\n")


def hand_written(requests: Path, output: Path) -> None:
    """What people write: no checks, no records, the interval of the poll as its only care."""
    from openai import OpenAI

    client = OpenAI()
    with requests.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(POLL_SECONDS)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None, batch
    client.files.content(batch.output_file_id).write_to_file(output)


@contextmanager
def sandbox(folder: Path, rows_per_second: float) -> Iterator[str]:
    """A sandbox process; its base URL."""
    ready = folder / "ready"
    command = [sys.executable, "-m", "batchpipe", "sandbox", "--port", "0", "--ready-file", str(ready)]
    server = subprocess.Popen([*command, "--rows-per-second", str(rows_per_second)], stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if server.poll() is not None:
                sys.exit("the sandbox did not start")
            time.sleep(0.05)
        yield ready.read_text().strip()
    finally:
        server.terminate()
        server.wait()


def timed(command: list[str], environment: dict[str, str], folder: Path) -> float:
    start = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def compare(folder: Path, options: argparse.Namespace) -> int:
    requests = folder / "requests.jsonl"
    make_requests(requests, options.rows)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHPIPE_", "OPENAI_"))}
    times: dict[str, list[float]] = {"hand-written": [], "batchpipe run": []}
    with sandbox(folder, options.rows_per_second) as url:
        environment = {
            **plain,
            "OPENAI_BASE_URL": url,
            "OPENAI_API_KEY": "sandbox",
            "BATCHPIPE_HOME": str(folder / "home"),
            "BATCHPIPE_POLL_MIN_SECONDS": str(POLL_SECONDS),
            "BATCHPIPE_POLL_MAX_SECONDS": str(POLL_SECONDS),
            "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",  # so that it runs where no redis-server is, too
        }
        for number in range(options.rounds):
            output = folder / f"peer-{number}.jsonl"
            peer = [sys.executable, __file__, "--peer", str(requests), str(output)]
            times["hand-written"].append(timed(peer, environment, folder))
            results = folder / f"run-{number}"
            ours = [sys.executable, "-m", "batchpipe", "run", str(requests), "-o", str(results)]
            times["batchpipe run"].append(timed(ours, environment, folder))
            for file in (output, results / "output.jsonl"):
                with file.open("rb") as lines:
                    assert sum(1 for _ in lines) == options.rows, f"{file} has not {options.rows} rows"
    return report(options, times)


def report(options: argparse.Namespace, times: dict[str, list[float]]) -> int:
    print(f"{options.rows} rows, the sandbox at {options.rows_per_second:g} rows a second, {options.rounds} rounds")
    for name, seconds in times.items():
        print(f"{name:<14} {'  '.join(f'{s:5.2f}' for s in seconds)}   median {median(seconds):.2f} s")
    peer, ours = median(times["hand-written"]), median(times["batchpipe run"])
    bound = FACTOR * peer + START_SECONDS
    verdict = "ok" if ours <= bound else "TOO SLOW"
    print(f"ratio {ours / peer:.2f}, {ours - peer:+.2f} s")
    print(f"allowed {FACTOR} x {peer:.2f} + {START_SECONDS:g} = {bound:.2f} s: {verdict}")
    return int(ours > bound)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each")
    parser.add_argument(
        "--rows-per-second", type=float, default=5_000, help="pace of the sandbox: how long a batch lasts"
    )
    parser.add_argument("--peer", nargs=2, type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        hand_written(*options.peer)
        return 0
    with tempfile.TemporaryDirectory(prefix="batchpipe-bench-") as folder:
        return compare(Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
