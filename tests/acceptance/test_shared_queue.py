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
