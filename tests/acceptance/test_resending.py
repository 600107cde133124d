"""Rows that may be sent again are, by real workers: each is paid for once, and results keep the input's order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from batchpipe.sandbox import Fault, Sandbox
from tests.acceptance.user_machine import Place, read_rows

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
    new_place: Callable[..., Place], new_sandbox: Callable[..., Sandbox], at_once: ThreadPoolExecutor
) -> dict[str, Future[Any]]:
    """All jobs at once on one worker and one provider."""
    sandbox = new_sandbox()
    place = new_place(provider=sandbox)
    for name, (faults, _) in STORIES.items():
        for fault in faults:
            sandbox.faults.add(Fault(where={"story": name}, **fault))
    place.worker()
    source = place.input(4)

    def story(name: str, options: list[str]) -> dict[str, Any]:
        job = place.submit(source, "--metadata", f"story={name}", *options, output=name)
        code = place.run("wait", job, "--timeout", "60").code
        output = place.folder / name
        return {
            "code": code,
            "status": place.json("status", job),
            "ok": [row["custom_id"] for row in read_rows(output / "output.jsonl")],
            "errors": read_rows(output / "errors.jsonl"),
            "sizes": [batch.total for batch in place.batches(job)],
            "billed": place.billed(job),
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
    told = stories[name].result()
    assert (told["code"], told["status"]["state"], told["ok"], told["errors"]) == (0, "succeeded", ALL, [])
    assert told["sizes"] == sizes
    assert told["billed"] == dict.fromkeys(ALL, 1)
    assert [(shard["index"], shard["round"], shard["rows"]) for shard in told["status"]["shards"]] == [
        (0, 1, 4),
        (1, 2, sizes[1]),
    ]
    assert told["status"]["rows"] == {"total": 4, "ok": 4, "failed": 0, "missing": 0}


def test_a_row_that_fails_again_and_again_ends_with_its_last_answer(stories: dict[str, Future[Any]]) -> None:
    """When the attempts are used up, and their number is told."""
    told = stories["lasting"].result()
    (row,) = told["errors"]
    assert (told["code"], told["status"]["state"], told["sizes"]) == (3, "partial", [4, 1])
    assert (row["custom_id"], row["outcome"], row["attempts"], row["response"]["status_code"]) == (
        "r1",
        "failed",
        2,
        503,
    )


def test_one_attempt_sends_every_row_once(stories: dict[str, Future[Any]]) -> None:
    """As asked for."""
    told = stories["single"].result()
    assert (told["code"], told["sizes"], told["errors"][0]["attempts"]) == (3, [4], 1)


def test_rows_refused_because_of_another_are_sent_again(stories: dict[str, Future[Any]]) -> None:
    """The one that the provider named has failed, with the provider's words."""
    told = stories["refused"].result()
    assert (told["code"], told["status"]["state"], told["ok"]) == (3, "partial", ["r0", "r2", "r3"])
    assert [(row["custom_id"], row["error"]["code"]) for row in told["errors"]] == [("r1", "bad_row")]
    assert told["status"]["error"]["code"] == "bad_row"
