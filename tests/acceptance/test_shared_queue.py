"""Real workers against a provider whose queue of tokens is too small for all shards at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, read_rows, until

#: Tokens of one row of ``Machine.input``, at most, as the sandbox counts them; its bytes are many times as many.
ROW = 30


@pytest.mark.slow
def test_many_shards_share_a_small_queue_and_none_is_refused_once_the_limit_is_known(
    new_machine: Callable[..., Machine], new_sandbox: Callable[..., Sandbox]
) -> None:
    # slow rows: a busy machine creates few batches a second, and the queue must fill all the same
    sandbox = new_sandbox(rows_per_second=1, enqueued_tokens={"*": 4 * 2 * ROW})
    machine = new_machine("room", provider=sandbox, BATCHPIPE_MAX_ROWS="2")
    machine.worker()
    large = machine.submit(machine.input(40, name="large.jsonl"), output="large")
    small = machine.submit(machine.input(2, name="small.jsonl"), output="small")

    def view(job: str) -> dict[str, Any]:
        found: dict[str, Any] = machine.json("status", job)
        return found

    waits = until(lambda: view(large)["waits_for"], what="a shard that waits")
    assert waits["code"] in ("tokens", "turn")
    assert waits["place"] >= 1
    assert "wait for" in machine.run("status", large).out
    until(lambda: view(small)["state"] == "succeeded", 60.0, "the small job's end")
    assert view(large)["state"] == "running"
    refused = sandbox.quotas.refused
    until(lambda: view(large)["state"] == "succeeded", 90.0, "the large job's end")
    assert sandbox.quotas.refused == refused
    assert len(read_rows(machine.folder / "large/output.jsonl")) == 40
    assert sandbox.ledger.billed_twice() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "kind", "made"),
    [
        ({"batches_in_flight": 3}, "batches", 20),
        ({"creations_per_hour": 12}, "creations", 12),
        ({"uploads_per_minute": 12}, "uploads", 12),
    ],
)
def test_a_refusal_at_the_door_teaches_what_the_door_takes(
    limit: dict[str, Any],
    kind: str,
    made: int,
    new_machine: Callable[..., Machine],
    new_sandbox: Callable[..., Sandbox],
) -> None:
    """In its words, or its headers; twenty shards do not each find out by themselves, again and again."""
    sandbox = new_sandbox(rows_per_second=2, **limit)
    machine = new_machine("door", provider=sandbox, BATCHPIPE_MAX_ROWS="1")
    machine.worker()
    job = machine.submit(machine.input(20))

    def waits() -> bool:
        found = machine.json("status", job)["waits_for"]
        return found is not None and found["code"] == kind

    until(waits, 60.0, "a shard that waits at the door")
    until(lambda: len(sandbox.batches.all()) == made, 120.0, "as many batches as the door takes")
    refused = [call for call in sandbox.calls if call.method == "POST" and call.status in (400, 429)]
    assert 1 <= len(refused) <= 10
    if kind == "batches":
        until(lambda: machine.json("status", job)["state"] == "succeeded", 60.0, "the job's end")
    assert sandbox.ledger.billed_twice() == []
