"""Rows that may be sent again are, by real workers: each is paid for once, and results keep the input's order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchpipe.sandbox import Fault, Sandbox
from tests.acceptance.user_machine import Machine, read_rows

#: story -> the faults at the provider, and options of the job
STORIES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "passing": ([{"kind": "row_fails", "status": 500, "custom_id": "^r[13]$", "row_times": 1}], []),
    "missing": ([{"kind": "row_missing", "custom_id": "^r2$", "row_times": 1}], []),
    "lasting": ([{"kind": "row_fails", "status": 503, "custom_id": "^r1$"}], ["--attempts", "2"]),
    "single": ([{"kind": "row_fails", "status": 500, "custom_id": "^r1$"}], ["--attempts", "1"]),
    "expired": ([{"kind": "expire", "fraction": 0.5, "times": 1}], []),
    "refused": (
        [
            {
                "kind": "fail_batch",
                "times": 1,
                "errors": [{"code": "bad_row", "message": "no", "line": 2, "param": None}],
            }
        ],
        [],
    ),
}


@pytest.fixture(scope="module")
def stories(
    new_machine: Callable[..., Machine], new_sandbox: Callable[..., Sandbox], at_once: ThreadPoolExecutor
) -> dict[str, Future[Any]]:
    """All jobs at once on one worker and one provider."""
    sandbox = new_sandbox()
    machine = new_machine(provider=sandbox)
    for name, (faults, _) in STORIES.items():
        for fault in faults:
            sandbox.faults.add(Fault(where={"story": name}, **fault))
    machine.worker()
    source = machine.input(4)

    def story(name: str, options: list[str]) -> dict[str, Any]:
        job = machine.submit(source, "--metadata", f"story={name}", *options, output=name)
        code = machine.run("wait", job, "--timeout", "60").code
        output = machine.folder / name
        return {
            "code": code,
            "status": machine.json("status", job),
            "ok": [row["custom_id"] for row in read_rows(output / "output.jsonl")],
            "errors": read_rows(output / "errors.jsonl"),
            "sizes": [batch.total for batch in machine.batches(job)],
            "billed": machine.billed(job),
        }

    return {name: at_once.submit(story, name, options) for name, (_, options) in STORIES.items()}


ALL = ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize(
    ("name", "sizes"), [("passing", [4, 2]), ("missing", [4, 1]), ("expired", [4, 2])], ids=lambda value: str(value)
)
def test_what_failed_for_a_passing_reason_succeeds_in_a_further_round(
    stories: dict[str, Future[Any]], name: str, sizes: list[int]
) -> None:
    """Only those rows are sent again, in shards of a second round, and none is paid for twice."""
    observed = stories[name].result()
    assert (observed["code"], observed["status"]["state"], observed["ok"], observed["errors"]) == (
        0,
        "succeeded",
        ALL,
        [],
    )
    assert observed["sizes"] == sizes
    assert observed["billed"] == dict.fromkeys(ALL, 1)
    assert [(shard["index"], shard["round"], shard["rows"]) for shard in observed["status"]["shards"]] == [
        (0, 1, 4),
        (1, 2, sizes[1]),
    ]
    assert observed["status"]["rows"] == {"total": 4, "ok": 4, "failed": 0, "missing": 0}


def test_a_row_that_fails_again_and_again_ends_with_its_last_answer(stories: dict[str, Future[Any]]) -> None:
    """When the attempts are used up, and their number is told."""
    observed = stories["lasting"].result()
    (row,) = observed["errors"]
    assert (observed["code"], observed["status"]["state"], observed["sizes"]) == (3, "partial", [4, 1])
    assert (row["custom_id"], row["outcome"], row["attempts"], row["response"]["status_code"]) == (
        "r1",
        "failed",
        2,
        503,
    )


def test_one_attempt_sends_every_row_once(stories: dict[str, Future[Any]]) -> None:
    """As asked for."""
    observed = stories["single"].result()
    assert (observed["code"], observed["sizes"], observed["errors"][0]["attempts"]) == (3, [4], 1)


def test_rows_refused_because_of_another_are_sent_again(stories: dict[str, Future[Any]]) -> None:
    """The one that the provider named has failed, with the provider's words."""
    observed = stories["refused"].result()
    assert (observed["code"], observed["status"]["state"], observed["ok"]) == (3, "partial", ["r0", "r2", "r3"])
    assert [(row["custom_id"], row["error"]["code"]) for row in observed["errors"]] == [("r1", "bad_row")]
    assert observed["status"]["error"]["code"] == "bad_row"
