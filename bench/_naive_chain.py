"""The peer of ``turns.py``: the same steps as a plain Celery chain, with no record, no lease and no check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import redis
from celery import Celery, chain
from openai import OpenAI

app = Celery("naive", broker=os.environ["NAIVE_BROKER"])
app.conf.update(worker_hijack_root_logger=False, task_ignore_result=False, result_backend=os.environ["NAIVE_BROKER"])
done = redis.Redis(unix_socket_path=os.environ["NAIVE_SOCKET"])
client = OpenAI(max_retries=0, timeout=30)


@app.task  # type: ignore[untyped-decorator]
def prepare(source: str, output: str) -> list[str]:
    Path(output).mkdir(parents=True)
    copy = Path(output, "shard.jsonl")
    copy.write_bytes(Path(source).read_bytes())
    return [str(copy), output]


@app.task  # type: ignore[untyped-decorator]
def upload(given: list[str]) -> list[str]:
    with open(given[0], "rb") as file:
        return [client.files.create(file=file, purpose="batch").id, given[1]]


@app.task  # type: ignore[untyped-decorator]
def create(given: list[str]) -> list[str]:
    made = client.batches.create(
        input_file_id=given[0], endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": given[1]}
    )
    return [made.id, given[1]]


@app.task(bind=True, max_retries=None)  # type: ignore[untyped-decorator]
def poll(self: Any, given: list[str]) -> list[str]:
    batch = client.batches.retrieve(given[0])
    if batch.status not in ("completed", "failed", "expired", "cancelled"):
        raise self.retry(countdown=float(os.environ["NAIVE_POLL"]))
    return [batch.output_file_id or "", given[1]]


@app.task  # type: ignore[untyped-decorator]
def download(given: list[str]) -> list[str]:
    Path(given[1], "answers.jsonl").write_bytes(client.files.content(given[0]).read())
    return given


@app.task  # type: ignore[untyped-decorator]
def merge(given: list[str]) -> None:
    Path(given[1], "answers.jsonl").rename(Path(given[1], "output.jsonl"))
    client.files.delete(given[0])
    done.incr("naive:done")


def send(source: str, output: str) -> None:
    chain(prepare.s(source, output), upload.s(), create.s(), poll.s(), download.s(), merge.s()).apply_async()
