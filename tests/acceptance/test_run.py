"""`batchpipe run`: submit and follow to the end, in the foreground; the same command again resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.user_machine import Finished, Machine, read_rows, request, request_lines

JOB_KEYS = {
    *("id", "name", "state", "account", "endpoint", "input", "output", "output_file", "error_file"),
    *("created_at", "ended_at", "error", "held", "incomplete", "tags", "rows", "shards"),
    *("progress", "eta", "waits_for", "reasons"),
}
SHARD_KEYS = {
    *("index", "round", "stage", "batch_id", "status", "rows", "request_counts"),
    *("expires_at", "eta", "late", "waits_for"),
}
ROW_COUNTS = {"total", "ok", "failed", "missing"}


class Run:
    """A run that has ended: the machine, the answer of the command, and its job."""

    def __init__(self, machine: Machine, done: Finished, output: Path) -> None:
        self.machine, self.done, self.output = machine, done, output
        self.job: dict[str, Any] = json.loads((output / "job.json").read_bytes())
        self.id: str = self.job["id"]
        self.batches = machine.batches(self.id)

    @property
    def calls(self) -> int:
        assert self.machine.sandbox is not None
        return len(self.machine.sandbox.calls)


def run(machine: Machine, *arguments: str | Path, **how: Any) -> Run:
    output = machine.folder / "out"
    return Run(machine, machine.run("run", *arguments, "-o", output, **how), output)


# -- the stories, told side by side ------------------------------------------------------------------------------------


def repeated(new_machine: Callable[..., Machine], new_sandbox: Callable[..., Any]) -> dict[str, Any]:
    """Once; the same command; with --again; with a changed input. All with a private Redis."""
    machine = new_machine("repeated", private=True, provider=new_sandbox())
    source = machine.input(12)
    story: dict[str, Any] = {"machine": machine, "first": run(machine, source, "--max-rows", "4")}
    story["output"] = (machine.folder / "out" / "output.jsonl").read_bytes()
    story["lines"] = machine.provider_lines(story["first"].id)
    story["status"] = machine.json("status", story["first"].id)
    before = story["first"].calls
    story["second"] = run(machine, source, "--max-rows", "4")
    story["calls_of_second"] = story["second"].calls - before
    story["again"] = run(machine, source, "--max-rows", "4", "--again")
    machine.input(10)
    story["changed"] = run(machine, source, "--max-rows", "4")
    return story


def with_sandbox(new_machine: Callable[..., Machine]) -> Run:
    machine = new_machine("sandboxed", private=True, OPENAI_API_KEY="", OPENAI_BASE_URL="")
    return run(machine, machine.input(6), "--sandbox")


def from_stdin(new_machine: Callable[..., Machine]) -> list[Run]:
    machine = new_machine("stdin")
    return [run(machine, "-", stdin=request_lines(5)) for _ in range(2)]


def mixed(new_machine: Callable[..., Machine]) -> Run:
    machine = new_machine("mixed", PYTHONWARNINGS="default")
    source = machine.input(9, models=("gpt-4o-mini", "gpt-4o", "gpt-4.1"))
    options = ["--metadata", "team=red", "--metadata", "note=a=b", "--name", "a name", "--completion-window", "24h"]
    extra = json.dumps({"anchor": "created_at", "seconds": 7200})
    return run(machine, source, *options, "--extra", f"output_expires_after={extra}", "--json")


def embeddings(new_machine: Callable[..., Machine]) -> Run:
    machine = new_machine("embeddings")
    url = "/v1/embeddings"
    rows = [request(f"e{n}", url=url, model="text-embedding-3-small", input=[f"text {n}", "more"]) for n in range(4)]
    source = machine.write("e.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return run(machine, source, "--endpoint", url)


@pytest.fixture(scope="module")
def stories(
    at_once: ThreadPoolExecutor, new_machine: Callable[..., Machine], new_sandbox: Callable[..., Any]
) -> dict[str, Future[Any]]:
    """All of them begin with the first test of this module; each test waits for its own."""
    tell = at_once.submit
    return {
        "repeated": tell(repeated, new_machine, new_sandbox),
        "mixed": tell(mixed, new_machine),
        "sandbox": tell(with_sandbox, new_machine),
        "stdin": tell(from_stdin, new_machine),
        "embeddings": tell(embeddings, new_machine),
    }


@pytest.fixture(scope="module")
def twice(stories: dict[str, Future[Any]]) -> dict[str, Any]:
    story: dict[str, Any] = stories["repeated"].result()
    return story


@pytest.fixture(scope="module")
def first(twice: dict[str, Any]) -> Run:
    found: Run = twice["first"]
    return found


# -- one run -----------------------------------------------------------------------------------------------------------


def test_a_run_whose_rows_are_all_ok_exits_0_and_leaves_stdout_empty(first: Run) -> None:
    """Talk goes to stderr, so that stdout can be piped."""
    assert (first.done.code, first.done.out) == (0, "")
    assert "12 of 12 rows ok" in first.done.err


def test_the_output_holds_the_providers_lines_in_the_order_of_the_input(twice: dict[str, Any]) -> None:
    """Byte for byte what the provider wrote, however it ordered its file."""
    expected = b"".join(twice["lines"][f"r{number}"] for number in range(12))
    assert expected == twice["output"]


def test_a_run_of_three_shards_makes_three_batches(first: Run) -> None:
    """`--max-rows` bounds each of them."""
    assert [batch.total for batch in first.batches] == [4, 4, 4]
    assert [shard["rows"] for shard in first.job["shards"]] == [4, 4, 4]


def test_errors_jsonl_is_there_and_empty_when_every_row_is_ok(first: Run) -> None:
    assert (first.output / "errors.jsonl").read_bytes() == b""


def test_job_json_has_exactly_the_keys_of_the_contract(first: Run) -> None:
    assert first.job.keys() == JOB_KEYS
    assert first.job["rows"] == {"total": 12, "ok": 12, "failed": 0, "missing": 0}
    for index, shard in enumerate(first.job["shards"]):
        assert shard.keys() == SHARD_KEYS
        assert (index, 1, "collected", "completed") == tuple(shard[k] for k in ("index", "round", "stage", "status"))
        assert shard["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
        assert shard["batch_id"] == first.batches[index].id or shard["batch_id"] in {b.id for b in first.batches}


def test_job_json_tells_places_times_and_state(first: Run) -> None:
    """Places are absolute, times unix seconds."""
    job, folder = first.job, first.machine.folder
    assert tuple(job[k] for k in ("state", "error", "account", "endpoint", "tags")) == (
        "succeeded",
        None,
        "default",
        "/v1/chat/completions",
        {},
    )
    assert (str(folder / "input.jsonl"), str(folder / "out")) == (job["input"], job["output"])
    assert (str(folder / "out/output.jsonl"), str(folder / "out/errors.jsonl")) == (
        job["output_file"],
        job["error_file"],
    )
    assert 1_700_000_000 < job["created_at"] < job["ended_at"] < 4_000_000_000


def test_status_json_says_the_same_as_job_json(twice: dict[str, Any]) -> None:
    assert twice["first"].job == twice["status"]


def test_each_row_is_billed_once(twice: dict[str, Any]) -> None:
    first = twice["first"]
    assert first.machine.billed(first.id) == dict.fromkeys((f"r{n}" for n in range(12)), 1)


def test_the_output_folder_has_no_other_visible_files(first: Run) -> None:
    """The workspace is hidden, drafts are gone."""
    visible = sorted(path.name for path in first.output.iterdir() if not path.name.startswith("."))
    assert visible == ["errors.jsonl", "job.json", "output.jsonl"]


def test_a_run_ends_with_nothing_left_running(first: Run, twice: dict[str, Any]) -> None:
    """Its worker and its private Redis go with it."""
    from tests.acceptance.user_machine import until

    until(lambda: not first.machine.leftovers(), 10, "the worker and the Redis of a run are gone")


# -- the same again ----------------------------------------------------------------------------------------------------


def test_the_same_command_again_exits_0_and_sends_nothing(twice: dict[str, Any]) -> None:
    second = twice["second"]
    assert (second.done.code, twice["calls_of_second"], second.done.out) == (0, 0, "")
    assert second.id == twice["first"].id


def test_again_starts_afresh(twice: dict[str, Any]) -> None:
    again = twice["again"]
    assert again.done.code == 0, again.done.err
    assert again.id != twice["first"].id
    assert len(again.batches) == 3


def test_a_changed_input_is_a_new_job(twice: dict[str, Any]) -> None:
    changed = twice["changed"]
    assert changed.done.code == 0, changed.done.err
    assert changed.id not in (twice["first"].id, twice["again"].id)
    assert changed.job["rows"]["total"] == 10
    assert [f"r{n}" for n in range(10)] == [row["custom_id"] for row in read_rows(changed.output / "output.jsonl")]


# -- other inputs and options ------------------------------------------------------------------------------------------


def test_run_sandbox_needs_no_key(stories: dict[str, Future[Any]]) -> None:
    found: Run = stories["sandbox"].result()
    assert found.done.code == 0, found.done.err
    assert (found.job["account"], found.job["rows"]["ok"]) == ("sandbox", 6)
    assert found.batches == []  # it has a server of its own


def test_stdin_is_read_and_never_resumed(stories: dict[str, Future[Any]]) -> None:
    one, two = stories["stdin"].result()
    for found in (one, two):
        assert found.done.code == 0, found.done.err
        assert found.machine.billed(found.id) == dict.fromkeys((f"r{n}" for n in range(5)), 1)
    assert one.id != two.id


def test_rows_of_several_models_come_back_in_the_order_of_the_input(stories: dict[str, Future[Any]]) -> None:
    """A batch takes one model only, so there are three."""
    found: Run = stories["mixed"].result()
    assert found.done.code == 0, found.done.err
    assert {"gpt-4o-mini", "gpt-4o", "gpt-4.1"} == {batch.model for batch in found.batches}
    lines = found.machine.provider_lines(found.id)
    assert (found.output / "output.jsonl").read_bytes() == b"".join(lines[f"r{n}"] for n in range(9))


def test_metadata_and_extra_arrive_at_the_provider(stories: dict[str, Future[Any]]) -> None:
    found: Run = stories["mixed"].result()
    for batch in found.batches:
        assert batch.metadata is not None
        ours = {name for name in batch.metadata if name.startswith("batchpipe_")}
        assert {"batchpipe_job", "batchpipe_shard", "batchpipe_key"} == ours
        assert ("red", "a=b", found.id) == tuple(batch.metadata[k] for k in ("team", "note", "batchpipe_job"))
        assert batch.output_expires_after == 7200


def test_run_json_prints_one_document_that_is_job_json(stories: dict[str, Future[Any]]) -> None:
    found: Run = stories["mixed"].result()
    assert found.job == json.loads(found.done.out)
    assert found.job["name"] == "a name"


def test_embeddings_have_an_endpoint_of_their_own(stories: dict[str, Future[Any]]) -> None:
    found: Run = stories["embeddings"].result()
    assert found.done.code == 0, found.done.err
    rows = read_rows(found.output / "output.jsonl")
    assert [row["custom_id"] for row in rows] == ["e0", "e1", "e2", "e3"]
    assert [len(row["response"]["body"]["data"]) for row in rows] == [2] * 4
    assert found.batches[0].endpoint == found.job["endpoint"] == "/v1/embeddings"


def test_a_run_gives_no_warning_though_all_are_switched_on(stories: dict[str, Future[Any]]) -> None:
    found: Run = stories["mixed"].result()
    assert found.done.code == 0, found.done.err
    assert "Warning" not in found.done.err
    logs = list((found.machine.home / "logs").glob("*.log"))
    assert logs
    assert [
        line
        for log in logs
        for line in log.read_text().splitlines()
        if "batchpipe" in line and "Warn" in line and "site-packages" not in line  # the clone may be called batchpipe
    ] == []
