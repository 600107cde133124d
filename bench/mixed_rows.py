"""Opens and reads of an object store per MB, however the rows of models and rounds are mixed.

    python bench/mixed_rows.py [--rows 10,1000,100000]

Rows of nine models come in turn and are prepared into a store in memory; then their outcomes, of three rounds, are
merged. Every file begun and every range read there is counted. The bound is for the largest input: so many calls a MB.
"""

from __future__ import annotations

import argparse
import time
import uuid
from contextlib import closing
from typing import Any

import fsspec
import orjson

from batchpipe.model.records import JobRecord
from batchpipe.pipeline.results import Round, iter_last
from batchpipe.pipeline.shard_files import ShardFiles
from batchpipe.pipeline.steps.prepare import prepare
from batchpipe.storage import Folder

CHAT, MODELS, ROUNDS = "/v1/chat/completions", 9, 3
MOST_PER_MB = 4.0


class Counted:
    """Counts what a store in memory is asked for."""

    def __init__(self) -> None:
        self.calls = 0
        self._fs = fsspec.filesystem("memory")
        self._was = (self._fs.cat_file, self._fs.open)

    def __enter__(self) -> Counted:
        cat, begin = self._was

        def cat_file(*args: Any, **how: Any) -> Any:
            self.calls += 1
            return cat(*args, **how)

        def opened(*args: Any, **how: Any) -> Any:
            self.calls += 1
            return begin(*args, **how)

        self._fs.cat_file, self._fs.open = cat_file, opened
        return self

    def __exit__(self, *exc: object) -> None:
        del self._fs.cat_file, self._fs.open


def request(number: int) -> bytes:
    body = {"model": f"m{number % MODELS}", "messages": [{"role": "user", "content": "x" * 200}]}
    return orjson.dumps({"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}) + b"\n"


def prepared(rows: int) -> tuple[int, int, int]:
    """Calls, bytes and shards of an input of so many rows."""
    root = Folder(f"memory://{uuid.uuid4().hex}")
    with root.writer("in.jsonl") as file:
        size = sum(file.write(request(number)) for number in range(rows))
    job = JobRecord(id="job_x", input=root.path("in.jsonl"), output=root.path("out"))
    with Counted() as store:
        found = prepare(job, root.child("work"), "t", check=lambda: None)
    root.remove("")
    return store.calls, size, len(found.shards)


def merged(rows: int) -> tuple[int, int]:
    """Calls and bytes of a merge: half of the rows of each round go through the next one, too."""
    work, rounds, size, left = Folder(f"memory://{uuid.uuid4().hex}"), [], 0, rows
    for number in range(ROUNDS):
        files = ShardFiles(work, f"t{number}")
        again = number < ROUNDS - 1
        for row in range(left):
            line = (b"f" if again and row % 2 else b"+") + b"x" * 300 + b"\n"
            files.write(row % MODELS, line)
            size += len(line)
        used = range(min(left, MODELS))
        files.commit(lambda: None)
        rounds.append(Round(f"order-t{number}", {index: files.name(index) for index in used}))
        left = left // 2 if again else left
    with Counted() as store, closing(iter_last(work, rounds)) as lines:
        assert sum(1 for _ in lines) == rows
    work.remove("")
    return store.calls, size


def show(rows: int, step: str, size: int, shards: str, calls: int, seconds: float) -> None:
    rate = calls / size * 1e6
    print(f"{rows:8} {step:>8} {size / 1e6:7.2f} {shards:>6} {calls:6} {rate:8.2f} {seconds:8.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10,1000,100000")
    last = 0.0
    print(f"{'rows':>8} {'step':>8} {'MB':>7} {'shards':>6} {'calls':>6} {'per MB':>8} {'seconds':>8}")
    for rows in map(int, parser.parse_args().rows.split(",")):
        begun = time.perf_counter()
        calls, size, shards = prepared(rows)
        seconds = time.perf_counter() - begun
        print(
            f"{rows:8} {'prepare':>8} {size / 1e6:7.2f} {shards:6} {calls:6} {calls / size * 1e6:8.2f} {seconds:8.2f}"
        )
        begun, prepare_rate = time.perf_counter(), calls / size * 1e6
        calls, size = merged(rows)
        seconds = time.perf_counter() - begun
        show(rows, "merge", size, "", calls, seconds)
        last = max(prepare_rate, calls / size * 1e6)
    print("ok" if last <= MOST_PER_MB else f"more than {MOST_PER_MB:g} calls per MB")
    return 0 if last <= MOST_PER_MB else 1


if __name__ == "__main__":
    raise SystemExit(main())
