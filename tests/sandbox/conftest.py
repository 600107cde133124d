"""One fast sandbox for the whole folder, emptied between tests, and an OpenAI client on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types import Batch

from batchpipe.sandbox import Sandbox

CHAT = "/v1/chat/completions"


class Api:
    """A sandbox, the real SDK on it, and the few steps that most tests begin with."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.client = OpenAI(base_url=sandbox.base_url, api_key="test", max_retries=0, timeout=20)

    def upload(self, rows: list[Any] | bytes) -> str:
        """Upload rows (or raw bytes) as a batch input; returns the file id."""
        data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        return self.client.files.create(file=("input.jsonl", data), purpose="batch").id

    def create(self, rows: list[Any] | bytes, endpoint: str = CHAT, **options: Any) -> Batch:
        """Upload and create a batch."""
        file_id = self.upload(rows)
        known: Any = endpoint
        return self.client.batches.create(input_file_id=file_id, endpoint=known, completion_window="24h", **options)

    def run(self, rows: list[Any] | bytes, endpoint: str = CHAT, **options: Any) -> Batch:
        """Upload, create, and wait for the end."""
        return self.wait(self.create(rows, endpoint, **options))

    def wait(self, batch: Batch) -> Batch:
        """Wait for a batch to end."""
        self.sandbox.batches.wait(batch.id)
        return self.client.batches.retrieve(batch.id)

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """The parsed lines of a result file; none for a file that is null."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.client.files.content(file_id).content.splitlines()]

    def ids(self, file_id: str | None) -> set[str]:
        """The custom_ids in a result file."""
        return {line["custom_id"] for line in self.lines(file_id)}


def chat_row(custom_id: str = "r0", *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    content = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Tell of {custom_id}"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": content}


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[Sandbox]:
    with Sandbox(validating_seconds=0.02, finalizing_seconds=0.01, cancelling_seconds=0.02) as sandbox:
        yield sandbox


@pytest.fixture
def api(shared_sandbox: Sandbox) -> Iterator[Api]:
    """A client of its own for each test: a connection that a fault broke in one must not meet the next."""
    shared_sandbox.reset()
    api = Api(shared_sandbox)
    yield api
    api.client.close()
    shared_sandbox.faults.clear()


@pytest.fixture
def sandbox(api: Api) -> Sandbox:
    return api.sandbox


@pytest.fixture
def client(api: Api) -> OpenAI:
    return api.client


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    return chat_row


@pytest.fixture
def rows() -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [chat_row(f"r{number}") for number in range(count)]


@pytest.fixture
def api_for() -> Iterator[Callable[[Sandbox], Api]]:
    """An Api for a sandbox of the test's own."""
    made: list[Api] = []

    def make(sandbox: Sandbox) -> Api:
        made.append(Api(sandbox))
        return made[-1]

    yield make
    for api in made:
        api.client.close()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Poll until something is true; returns it."""

    def poll(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "this did not come true in time"
            time.sleep(0.01)
        return value

    return poll
