"""Bad input: one line says what is wrong, where, and nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from batchpipe.sandbox import Sandbox
from tests.acceptance.user_machine import Finished, Machine, request, request_lines

GOOD = request_lines(1)


def line(**changes: Any) -> bytes:
    return json.dumps({**request("x"), **changes}).encode() + b"\n"


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in request("x").items() if key != name}).encode() + b"\n"


@dataclass(frozen=True)
class Bad:
    """An input and the words that its error must have."""

    data: bytes | None  #: None: there is no such file, or it is a directory
    words: tuple[str, ...]
    name: str = ""
    output: str = "out"
    of_run_only: bool = False


BAD = {
    "malformed JSON": Bad(GOOD + b'{"custom_id": "b", \n', ("line 2", "JSON")),
    "no custom_id": Bad(GOOD + without("custom_id"), ("line 2", "custom_id", "missing")),
    "a custom_id twice": Bad(GOOD + line(custom_id="a") + GOOD, ("line 3", "custom_id", "r0", "line 1")),
    "NaN": Bad(GOOD + line().replace(b'"gpt-4o-mini"', b'"gpt-4o-mini", "top_p": NaN'), ("line 2", "NaN")),
    "a byte order mark": Bad(b"\xef\xbb\xbf" + GOOD, ("line 1", "byte order mark")),
    "invalid UTF-8": Bad(GOOD + line().replace(b"Tell", b"T\xff\xfell"), ("line 2", "UTF-8")),
    "a url unlike the endpoint": Bad(GOOD + line(url="/v1/embeddings"), ("line 2", "url", "/v1/embeddings")),
    "no url": Bad(GOOD + without("url"), ("line 2", "url")),
    "a GET": Bad(GOOD + line(method="GET"), ("line 2", "method", "POST")),
    "no body": Bad(GOOD + without("body"), ("line 2", "body")),
    "no model": Bad(GOOD + line(body={"messages": []}), ("line 2", "model")),
    "a list": Bad(GOOD + b"[1]\n", ("line 2", "object")),
    "a blank line": Bad(GOOD + b"\n" + line(), ("line 2", "blank")),
    "nothing": Bad(b"", ("no rows",)),
    "a directory": Bad(None, ("directory",), name="."),
    "no such file": Bad(None, ("absent.jsonl", "no such file"), name="absent.jsonl"),
    "an output below a file": Bad(GOOD, ("input.jsonl/out",), output="input.jsonl/out", of_run_only=True),
}
#: A whole run takes seconds of a processor; the checks behind it are the same, so these stand for all.
RUN = [
    *("malformed JSON", "a custom_id twice", "nothing"),
    *("a directory", "no such file", "an output below a file"),
]


@pytest.fixture(scope="module")
def untouched(new_sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A provider that is not to be asked for anything."""
    return new_sandbox()


@pytest.fixture(scope="module")
def runs(
    at_once: ThreadPoolExecutor, new_machine: Callable[..., Machine], untouched: Sandbox
) -> dict[str, Future[tuple[Machine, Finished]]]:
    def run(case: Bad) -> tuple[Machine, Finished]:
        machine = new_machine("bad", provider=untouched)
        machine.write("input.jsonl", case.data or b"")
        return machine, machine.run("run", case.name or "input.jsonl", "-o", case.output)

    return {name: at_once.submit(run, BAD[name]) for name in RUN}


@pytest.fixture(scope="module")
def no_redis(new_machine: Callable[..., Machine], untouched: Sandbox) -> Machine:
    return new_machine("validate", provider=untouched, BATCHPIPE_REDIS_URL="redis://127.0.0.1:1/0")


def check(done: Finished, case: Bad) -> None:
    assert done.code in (1, 2), done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    errors = [text for text in done.err.splitlines() if text.startswith("Error:")]
    assert len(errors) == 1, done.err
    assert [word for word in case.words if word not in errors[0]] == [], errors[0]


@pytest.mark.parametrize("name", RUN)
def test_run_says_what_is_wrong_and_where(runs: dict[str, Future[tuple[Machine, Finished]]], name: str) -> None:
    """One line that begins with Error:, and no traceback."""
    _, done = runs[name].result()
    check(done, BAD[name])


def test_nothing_of_a_bad_input_is_sent(runs: dict[str, Future[tuple[Machine, Finished]]], untouched: Sandbox) -> None:
    """No file is uploaded, no batch is made."""
    for story in runs.values():
        story.result()
    assert untouched.calls.counts == {}


@pytest.mark.parametrize("name", ["malformed JSON", "a custom_id twice", "nothing"])
def test_a_refused_job_is_failed_and_names_no_result_files(
    runs: dict[str, Future[tuple[Machine, Finished]]], name: str
) -> None:
    """job.json says why; there are no results to point at."""
    machine, _ = runs[name].result()
    job = json.loads((machine.folder / "out/job.json").read_bytes())
    assert (job["state"], job["shards"]) == ("failed", [])
    assert set(job["error"]) == {"code", "message"}
    assert (job["output_file"], job["error_file"]) == (None, None)
    assert not (machine.folder / "out/output.jsonl").exists()


def test_the_results_of_a_refused_job_are_an_error_of_one_line(
    runs: dict[str, Future[tuple[Machine, Finished]]],
) -> None:
    """It repeats why the job failed."""
    machine, _ = runs["a custom_id twice"].result()
    done = machine.run("results", machine.json("list")[0]["id"])
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "line 3" in done.err


def test_the_same_command_runs_once_the_input_is_mended(
    runs: dict[str, Future[tuple[Machine, Finished]]], sandbox: Sandbox
) -> None:
    """A job that was refused does not stand in the way."""
    machine, _ = runs["malformed JSON"].result()
    machine.write("input.jsonl", GOOD)
    done = machine.run("run", "input.jsonl", "-o", "out", env={"OPENAI_BASE_URL": sandbox.base_url})
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", [name for name, case in BAD.items() if not case.of_run_only])
def test_validate_says_the_same_without_any_redis(no_redis: Machine, name: str) -> None:
    case = BAD[name]
    no_redis.write("input.jsonl", case.data or b"")
    check(no_redis.run("validate", case.name or "input.jsonl"), case)


def test_validate_tells_rows_shards_and_models_of_a_good_input(no_redis: Machine) -> None:
    source = no_redis.input(7, name="good.jsonl", models=("gpt-4o", "gpt-4o-mini"))
    found = no_redis.json("validate", source, "--max-rows", "2")
    assert {"rows", "bytes", "shards", "models"} == found.keys()
    assert (7, source.stat().st_size, 4) == (found["rows"], found["bytes"], found["shards"])
    assert found["models"] == {"gpt-4o": 4, "gpt-4o-mini": 3}


def test_validate_reads_stdin(no_redis: Machine) -> None:
    """Data of a pipe is checked like a file."""
    done = no_redis.run("validate", "-", stdin=GOOD + GOOD)
    check(done, Bad(None, ("line 2", "custom_id")))


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_file_that_is_not_there_is_refused_before_anything_is_recorded(machine: Machine, command: str) -> None:
    done = machine.run(command, "absent.jsonl", "-o", "out")
    check(done, BAD["no such file"])
    assert machine.json("list") == []


def test_an_iterator_that_is_empty_is_refused_at_submit(machine: Machine) -> None:
    """Stdin without a row."""
    done = machine.run("submit", "-", "-o", "out", stdin=b"")
    check(done, BAD["nothing"])
    assert machine.json("list") == []


def test_each_wrong_row_has_a_line_and_their_number_is_said(machine: Machine) -> None:
    """The first twenty of them, from ``validate``, ``run`` and ``status``."""
    machine.write("many.jsonl", GOOD + line(method="GET", custom_id="g0") + b"[1]\n" * 30)
    for command in (["validate", "many.jsonl"], ["run", "many.jsonl", "-o", "many", "--sandbox"]):
        done = machine.run(*command)
        said = done.err[done.err.index("Error: ") :].splitlines()
        assert (done.code, len(said)) == (1, 22)
        assert said[0].startswith('Error: line 2: method: is "GET"')
        assert said[1].startswith("  line 3: is a list")
        assert said[20:] == ["  and 11 more rows", "  31 rows are wrong; nothing was sent"]
    assert "31 rows are wrong" in machine.run("status", "last").out
