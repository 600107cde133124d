"""HTTP 200 is not an answer: with real workers and the real SDK, against a provider that gives such rows."""

from __future__ import annotations

import json
from collections.abc import Callable

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Machine, read_rows, request

RESPONSES = "/v1/responses"


def test_a_failed_response_is_sent_again_and_an_incomplete_one_is_counted(
    new_machine: Callable[..., Machine], new_sandbox: Callable[..., Sandbox]
) -> None:
    """``server_error`` once, then an answer; a refusal that stays; and answers that were cut."""
    sandbox = new_sandbox()
    machine = new_machine(provider=sandbox)
    sandbox.faults.add("row_body", custom_id="^r0$", row_times=1)
    sandbox.faults.add("row_body", custom_id="^r1$", code="invalid_prompt", message="not this", billed=True)
    early = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    sandbox.faults.add("row_body", custom_id="^r2$", json=early, billed=True)
    machine.worker()
    rows = [request(f"r{number}", url=RESPONSES, input="Tell me about rivers.") for number in range(4)]
    rows[3]["body"]["max_output_tokens"] = 1
    source = machine.write("input.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    job = machine.submit(source, "--endpoint", RESPONSES)
    assert machine.run("wait", job, "--timeout", "60").code == 3
    status = machine.json("status", job)
    assert status["rows"] == {"total": 4, "ok": 3, "failed": 1, "missing": 0}
    assert status["incomplete"] == {"content_filter": 1, "max_output_tokens": 1}
    assert json.loads((machine.folder / "out" / "job.json").read_bytes())["incomplete"] == status["incomplete"]
    assert "2 ok rows are incomplete: content_filter 1, max_output_tokens 1" in machine.run("status", job).out
    ended = [event for event in machine.json("logs", job) if event["event"] == "ended"]
    assert ended[0]["incomplete"] == status["incomplete"]
    assert [batch.total for batch in machine.batches(job)] == [4, 1]
    assert machine.billed(job) == {"r0": 1, "r1": 1, "r2": 1, "r3": 1}
    (failed,) = read_rows(machine.folder / "out" / "errors.jsonl")
    assert (failed["custom_id"], failed["outcome"]) == ("r1", "failed")
    assert failed["response"] == json.loads(machine.provider_lines(job)["r1"])["response"]
    assert failed["error"]["code"] == "invalid_prompt"
    assert failed["error"]["message"] == "HTTP 200, and the status of the response is failed: not this"
