"""Jobs of a table and a prompt, on the real pipeline: requests are made of rows, answers checked and asked again."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchpipe.model.asking_again import asked_again
from batchpipe.model.outcome import Outcome
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import State
from batchpipe.model.rendering import CHAT, RESPONSES
from batchpipe.model.views import job_view
from batchpipe.pipeline.job_results import JobResults
from batchpipe.pipeline.manifest import results_place
from batchpipe.testing import FakeOpenAI, Pump

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}, "size": {"type": "integer"}},
    "required": ["word", "size"],
    "additionalProperties": False,
}
#: What a model may say, and whether the answer is what was asked for.
SAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "good": ({"message": {"content": '{"word": "w", "size": 1}'}, "finish_reason": "stop"}, True),
    "no json": ({"message": {"content": "Here is it: {}"}, "finish_reason": "stop"}, False),
    "no fit": ({"message": {"content": '{"word": 1, "size": 1}'}, "finish_reason": "stop"}, False),
    "cut": ({"message": {"content": '{"word": "w", "si'}, "finish_reason": "length"}, False),
    "refused": ({"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"}, False),
    "filtered": ({"message": {"content": ""}, "finish_reason": "content_filter"}, False),
}


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"endpoint": CHAT, "model": "m", "prompt": "Of {{ name }}", "id": "name", **fields})


def checked(**fields: Any) -> Recipe:
    return recipe(answer=SCHEMA, **{"on_invalid": "reask", **fields})


def saying(*said: str) -> dict[str, Any]:
    choice = {"index": 0, **SAYS[said[0]][0]}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {"object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


class Scripted(FakeOpenAI):
    """Answers the rows of each round as told: {custom_id: [what is said in round 1, in round 2, ...]}, then good."""

    def __init__(self, script: Mapping[str, list[str]]) -> None:
        super().__init__(autofinish=True)
        self.asked: dict[str, list[dict[str, Any]]] = {}
        self._script = script
        self.answer = self._answer

    def _answer(self, request: Mapping[str, Any]) -> Any:
        name = request["custom_id"]
        asked = self.asked.setdefault(name, [])
        asked.append(dict(request["body"]))
        told = self._script.get(name, [])
        said = told[len(asked) - 1] if len(asked) <= len(told) else "good"
        if said == "error":
            return 500
        return None if said == "nothing" else saying(said)


def table(names: list[str]) -> bytes:
    return b"name,more\n" + b"".join(f"{name},x{name}\n".encode() for name in names)


def run(folder: Path, api: FakeOpenAI, rows: bytes, made: Recipe, **fields: Any) -> tuple[Pump, str, list[Outcome]]:
    pump = Pump(folder, api=api)
    job_id = pump.submit(rows, recipe=made, **fields)
    pump.run_until_idle()
    job = pump.job(job_id)
    rows_out = JobResults(job, pump.settings, results_place(job)) if job.results else ()
    return pump, job_id, list(rows_out)


def test_a_table_becomes_requests_and_its_rows_come_back_with_the_answers(tmp_path: Path) -> None:
    """In the order of the input, over several shards, also when the input has gone."""
    names = [f"n{number}" for number in range(7)]
    api = Scripted({})
    pump, job_id, rows = run(tmp_path, api, table(names), checked(), max_rows=3)

    Path(pump.job(job_id).input).unlink()
    job = pump.job(job_id)
    assert (job.state, job.ok, job.shards) == (State.SUCCEEDED, 7, 3)
    assert [row.input for row in rows] == [{"name": name, "more": f"x{name}"} for name in names]
    assert [row.id for row in rows] == names
    assert all(row.answer == {"word": "w", "size": 1} for row in rows)
    assert api.asked["n3"][0]["messages"] == [{"role": "user", "content": "Of n3"}]
    again = list(JobResults(job, pump.settings, results_place(job)))
    assert [row.input for row in again] == [row.input for row in rows]


def test_no_prompt_and_no_row_is_in_redis(tmp_path: Path) -> None:
    """Their place is the workspace."""
    pump, job_id, _ = run(tmp_path, Scripted({}), table(["secretrow"]), recipe(prompt="secretprompt {{ name }}"))
    client = pump.store.connection.client
    values = []
    for key in client.scan_iter("*"):
        kind = client.type(key)
        values.append(str(client.hgetall(key) if kind == "hash" else client.dump(key)))
    assert pump.job(job_id).state is State.SUCCEEDED
    assert values
    assert not [value for value in values if "secretrow" in value or "secretprompt" in value]


def test_the_endpoint_is_that_of_the_first_row_where_none_is_given(tmp_path: Path) -> None:
    pump = Pump(tmp_path, api=FakeOpenAI(autofinish=True))
    row = {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": {"model": "m", "input": "x"}}
    job_id = pump.submit([row], endpoint="")
    pump.run_until_idle()
    assert (pump.job(job_id).endpoint, pump.job(job_id).state) == (RESPONSES, State.SUCCEEDED)
    (batch,) = pump.api.batches.values()
    assert batch.arguments["endpoint"] == RESPONSES


@pytest.mark.parametrize("on_invalid", ["reask", "fail", "keep"])
def test_what_becomes_of_invalid_answers(tmp_path: Path, on_invalid: str) -> None:
    api = Scripted({"a": ["no json"], "b": ["refused", "cut"], "c": []})
    pump, job_id, rows = run(tmp_path, api, table(["a", "b", "c"]), checked(on_invalid=on_invalid))
    job = pump.job(job_id)
    asked = {name: len(bodies) for name, bodies in api.asked.items()}
    if on_invalid == "reask":
        assert (job.state, asked, job.invalid) == (State.SUCCEEDED, {"a": 2, "b": 3, "c": 1}, 0)
    else:
        assert asked == {"a": 1, "b": 1, "c": 1}
        ok, invalid = (1, 2) if on_invalid == "fail" else (3, 0)
        assert (job.ok, job.invalid) == (ok, invalid)
    if on_invalid == "fail":
        assert [row.reason for row in rows] == ["answer_invalid", "answer_invalid", None]
        assert rows[1].refusal == "I cannot"  # the last answer is kept
        view = job_view(job)
        assert view["rows"]["invalid"] == 2
        assert view["reasons"][0]["code"] == "answer_invalid"


def test_a_row_is_asked_again_with_its_answer_and_the_complaint(tmp_path: Path) -> None:
    """Round after round, each adds to the one before."""
    api = Scripted({"a": ["no fit", "no json"]})
    run(tmp_path, api, table(["a"]), checked())
    first, second, third = (body["messages"] for body in api.asked["a"])
    assert second[: len(first)] == first
    assert second[1] == {"role": "assistant", "content": '{"word": 1, "size": 1}'}
    assert "at word: 1 is not of type" in second[2]["content"]
    assert third[: len(second)] == second
    assert "it is not JSON" in third[-1]["content"]
    assert api.asked["a"][2]["response_format"] == api.asked["a"][0]["response_format"]


def test_a_cut_answer_is_asked_for_again_with_more_tokens(tmp_path: Path) -> None:
    api = Scripted({"a": ["cut", "cut"]})
    run(tmp_path, api, table(["a"]), checked(grow_tokens=True, params={"max_completion_tokens": 100}))
    assert [body["max_completion_tokens"] for body in api.asked["a"]] == [100, 200, 400]
    assert all(len(body["messages"]) == 1 for body in api.asked["a"])


def test_attempts_end_it_and_the_last_answer_is_kept(tmp_path: Path) -> None:
    api = Scripted({"a": ["no json", "cut", "no fit"]})
    pump, job_id, (row,) = run(tmp_path, api, table(["a"]), checked(), attempts=3)
    assert (pump.job(job_id).state, pump.job(job_id).invalid, row.attempts) == (State.FAILED, 1, 3)
    assert (row.reason, row.text) == ("answer_invalid", '{"word": 1, "size": 1}')


WORDS = st.sampled_from([*SAYS, "error", "nothing"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(st.lists(WORDS, max_size=4), min_size=1, max_size=8),
    attempts=st.integers(1, 4),
    max_rows=st.integers(1, 4),
    on_invalid=st.sampled_from(["reask", "fail", "keep"]),
)
def test_results_equal_those_of_a_simple_model(
    tmp_path: Path, script: list[list[str]], attempts: int, max_rows: int, on_invalid: str
) -> None:
    """For any rows, losses, invalid answers and rounds."""
    told = {f"r{number}": words for number, words in enumerate(script)}
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    api = Scripted(told)
    _, _, rows = run(
        folder, api, table(list(told)), checked(on_invalid=on_invalid), attempts=attempts, max_rows=max_rows
    )

    expected = {name: _expected(words, attempts, on_invalid) for name, words in told.items()}
    assert {row.id: (row.state.value, len(api.asked[row.id])) for row in rows} == expected
    assert [row.id for row in rows] == list(told)


def _expected(words: list[str], attempts: int, on_invalid: str) -> tuple[str, int]:
    """(state, how often it is asked) of one row."""
    for number in range(1, attempts + 1):
        said = words[number - 1] if number <= len(words) else "good"
        if said == "nothing":
            state, again = "missing", False  # it was counted as neither: see below
        elif said == "error":
            state, again = "failed", True
        elif on_invalid == "keep" or SAYS[said][1]:
            return "ok", number
        else:
            state, again = "failed", on_invalid == "reask"
        if said == "nothing":
            again = True
        if not again or number == attempts:
            return state, number
    raise AssertionError


def test_a_request_that_cannot_be_added_to_is_sent_as_it_was() -> None:
    """Of an endpoint without messages, of an odd shape, or where it would be too long."""
    request = orjson.dumps({"custom_id": "a", "body": {"messages": [{"role": "user", "content": "x"}]}}) + b"\n"
    refused = {"response": {"body": saying("no json")}, "error": {"message": "it is not JSON"}}
    line = orjson.dumps(refused)
    made = checked()
    assert asked_again(request, line, made, CHAT, 10_000) != request
    assert asked_again(request, line, made, CHAT, len(request)) == request
    assert asked_again(request, line, made, "/v1/embeddings", 10_000) in (request, _compact(request))
    assert asked_again(b"nonsense\n", line, made, CHAT, 10_000) == b"nonsense\n"
    assert asked_again(request, b"{}", made, CHAT, 10_000) == request


def _compact(line: bytes) -> bytes:
    return json.dumps(json.loads(line), separators=(",", ":")).encode() + b"\n"


def test_a_response_is_asked_again_with_its_items() -> None:
    request = orjson.dumps({"custom_id": "a", "body": {"model": "m", "input": "x"}}) + b"\n"
    message = {"type": "message", "content": [{"type": "output_text", "text": "hm"}]}
    body = {"object": "response", "status": "completed", "output": [message]}
    line = orjson.dumps({"response": {"body": body}, "error": {"message": "it is not JSON"}})
    again = orjson.loads(asked_again(request, line, checked(), RESPONSES, 10_000))["body"]["input"]
    assert again[0] == {"role": "user", "content": "x"}
    assert again[1] == {"role": "assistant", "content": "hm"}
    assert "it is not JSON" in again[2]["content"]


def test_tables_of_results_lie_beside_the_lines(tmp_path: Path) -> None:
    """All rows, in input order: the columns of the input, the fields of the answer, then what became of it."""
    api = Scripted({"b": ["no json"]})
    made = checked(on_invalid="fail")
    pump, job_id, _ = run(tmp_path, api, table(["a", "b", "=c"]), made, formats=["csv", "parquet"], excel=True)
    output = results_place(pump.job(job_id))
    with output.reader("output.csv") as file:
        text = file.read().decode("utf-8-sig")
    rows = list(csv.DictReader(text.splitlines()))
    columns = ["name", "more", "word", "size", "state", "error", "finish_reason", "input_tokens", "output_tokens"]
    assert list(rows[0]) == [*columns, "cost"]
    assert [(row["name"], row["word"], row["size"], row["state"], row["error"]) for row in rows] == [
        ("a", "w", "1", "ok", ""),
        ("b", "", "", "failed", "answer_invalid"),
        ("'=c", "w", "1", "ok", ""),
    ]
    with output.reader("output.parquet") as file:
        found = pyarrow.parquet.read_table(file).to_pylist()
    assert [(row["name"], row["size"], row["input_tokens"]) for row in found] == [
        ("a", 1, 1),
        ("b", None, 1),
        ("=c", 1, 1),
    ]


@pytest.mark.parametrize(
    ("rows", "made", "says"),
    [
        (b"a,b\n1,2\n", recipe(), "there is no column 'name'; the columns are: a, b"),
        (b"name\na\na\n", recipe(), 'line 3: name: "a" was used on line 2 already'),
        (b"name\na\n\n", recipe(prompt="{{ name if name != 'a' else '' }}"), "line 2: prompt: is empty for this row"),
        (b"name\n", recipe(), "the input has no rows"),
        (b"", recipe(), "the input has no rows"),
    ],
)
def test_a_bad_table_fails_the_job_and_sends_nothing(tmp_path: Path, rows: bytes, made: Recipe, says: str) -> None:
    pump = Pump(tmp_path, api=FakeOpenAI())
    job_id = pump.submit(rows, recipe=made)
    pump.run_until_idle()
    job = pump.job(job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert says in job.error.message
    assert not pump.api.files


def test_wrong_rows_are_collected_and_counted(tmp_path: Path) -> None:
    """The first twenty with their lines, then how many more."""
    rows = [{"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": {"model": "m"}} for n in range(3)]
    bad = [{"custom_id": f"b{n}", "method": "GET", "url": CHAT, "body": {"model": "m"}} for n in range(30)]
    pump = Pump(tmp_path, api=FakeOpenAI())
    job_id = pump.submit([*rows, *bad])
    pump.run_until_idle()
    error = pump.job(job_id).error
    assert error is not None
    lines = error.message.splitlines()
    assert lines[0].startswith("line 4: method: ")
    assert lines[19].startswith("line 23: method: ")
    assert lines[20:] == ["and 10 more rows", "30 rows are wrong; nothing was sent"]
