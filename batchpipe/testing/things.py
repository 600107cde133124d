"""What a stand-in for the provider has: files, batches, the calls that came, and how it answers a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchpipe.model.records import BatchError, Counts, Status

#: How the provider answers one request: a dict (the body of a 200), an int (the status of a refusal), a str (the
#: code of an error without a response, such as ``batch_expired``) or None (no line).
Answer = dict[str, Any] | int | str | None


def polite_answer(request: Mapping[str, Any]) -> Answer:
    """Every request gets a 200 that names its ``custom_id``."""
    message = {"role": "assistant", "content": f"answer to {request['custom_id']}"}
    return {
        "object": "chat.completion",
        "model": request.get("body", {}).get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


@dataclass(frozen=True)
class Call:
    """One call that FakeOpenAI received; ``argument`` is the id or name it was about."""

    method: str
    argument: str = ""


@dataclass
class FakeFile:
    """A file at the provider."""

    name: str
    data: bytes
    purpose: str = "batch_output"
    created_at: float = 0.0
    status: str = "processed"
    project: str = ""


@dataclass
class FakeBatch:
    """A batch at the provider. ``ran``: the rows that were answered and paid for."""

    id: str
    input_file_id: str
    requests: list[dict[str, Any]]
    metadata: dict[str, str]
    arguments: dict[str, Any]
    created_at: float
    expires_at: float | None = None
    in_progress_at: float | None = None
    finished_at: float | None = None
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    counts: Counts = field(default_factory=Counts)
    errors: list[BatchError] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    project: str = ""

    @property
    def is_final(self) -> bool:
        return self.status in Status.FINAL
