"""Downloading: every row of a shard is accounted for, whatever the provider's files look like."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.errors import BatchpipeError, Gone, LeaseLost, Unavailable
from batchpipe.jobs import BatchError, Counts, JobRecord, Move, Problem, ShardRecord, Stage
from batchpipe.steps.download import FETCHES_AT_ONCE, MAX_GONE, abandon, download
from batchpipe.storage import Folder

JOB = JobRecord(id="job_x")


def nothing() -> None:
    """A lease that is never lost."""


class FilesFake:
    """The provider's files in memory. ``told`` may differ from the true sizes; what is absent is gone."""

    def __init__(self, told: dict[str, int | None] | None = None, **files: bytes) -> None:
        self.files = files
        self.told: dict[str, int | None] = {name: len(data) for name, data in files.items()}
        self.told.update(told or {})

    def file_bytes(self, file_id: str) -> int | None:
        if file_id not in self.told:
            raise Gone(f"No such File object: {file_id}", status=404)
        return self.told[file_id]

    def download(self, file_id: str, sink: BinaryIO, check: Callable[[], None]) -> int:
        if file_id not in self.files:
            raise Gone(f"No such File object: {file_id}", status=404)
        data = self.files[file_id]
        for start in range(0, len(data), 100):
            check()
            sink.write(data[start : start + 100])
        return len(data)


def ok(name: str, text: str = "fine", **usage: int) -> bytes:
    body = {"text": text, "usage": usage}
    line = {"id": "r", "custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
    return json.dumps(line, ensure_ascii=False).encode()


def bad(name: str, code: str = "batch_expired") -> bytes:
    line = {"custom_id": name, "response": None, "error": {"code": code, "message": "no"}}
    return json.dumps(line).encode()


def lines(*rows: bytes) -> bytes:
    return b"".join(row + b"\n" for row in rows)


class Place:
    """A shard in a workspace."""

    def __init__(self, names: list[str], **changes: Any) -> None:
        self.workspace = Folder(f"memory://{uuid.uuid4().hex}")
        with self.workspace.writer("shards/00003-t.jsonl") as file:
            file.write(lines(*(json.dumps({"custom_id": name, "method": "POST"}).encode() for name in names)))
        self.shard = ShardRecord(job="job_x", index=3, rows=len(names), file="shards/00003-t.jsonl", **changes)

    def download(self, api: FilesFake, output: str | None = None, error: str | None = None, **changes: Any) -> Move:
        shard = self.shard.evolve(output_file_id=output, error_file_id=error, **changes)
        return download(JOB, shard, self.workspace, api, "tok", check=nothing)

    def rows(self, move: Move) -> list[bytes]:
        assert move.stage == Stage.COLLECTED
        with self.workspace.reader(move.changes["collected_file"]) as file:
            return file.read().split(b"\n")[:-1]


def numbers(move: Move) -> tuple[int, int, int]:
    return move.changes["ok"], move.changes["failed"], move.changes["missing"]


def test_rows_are_collected_in_the_order_of_the_requests() -> None:
    """Each with the provider's own line, from both files."""
    place = Place(["a", "b", "c", "d"])
    api = FilesFake(out=lines(ok("d"), ok("a", "é\u2028")), err=lines(bad("c")))
    move = place.download(api, "out", "err")
    assert numbers(move) == (2, 1, 1)
    rows = place.rows(move)
    assert rows[0] == b"+" + ok("a", "é\u2028")
    assert rows[3] == b"+" + ok("d")
    assert [row[:1] for row in rows[1:3]] == [b"m", b"f"]
    missing, failed = (json.loads(row[1:]) for row in rows[1:3])
    assert missing == {"custom_id": "b", "outcome": "missing", "attempts": 1, "response": None, "error": None}
    assert failed["outcome"] == "failed"
    assert failed["error"] == {"code": "batch_expired", "message": "no"}
    assert move.changes["collected_file"] == "collected/00003-1-tok.rows"
    assert move.changes["error"] is None
    assert place.workspace.names() == ["collected", "shards"]


@pytest.mark.parametrize(("output", "error"), [(None, None), ("", ""), ("empty", ""), ("empty", "empty")])
def test_files_may_be_absent_or_empty(output: str | None, error: str | None) -> None:
    """Null, an empty id or an empty file all mean: no lines."""
    assert numbers(Place(["a", "b"]).download(FilesFake(empty=b""), output, error)) == (0, 0, 2)


def test_a_last_newline_may_lack_and_blank_lines_do_not_count() -> None:
    """Both were seen at providers."""
    place = Place(["a", "b"])
    move = place.download(FilesFake(out=b"\n" + ok("b") + b"\r\n\n" + ok("a")), "out", "")
    assert [b"+" + ok("a"), b"+" + ok("b")] == place.rows(move)


def test_a_row_with_another_status_is_failed() -> None:
    """Also in the output file; its response is kept as it came."""
    place = Place(["a"])
    line = b'{"custom_id":"a","response":{"status_code":0,  "body":null},"error":null}'
    move = place.download(FilesFake(out=line), "out")
    assert numbers(move) == (0, 1, 0)
    assert place.rows(move) == [
        b'f{"custom_id":"a","outcome":"failed","attempts":1,"response":{"status_code":0,  "body":null},"error":null}'
    ]


def test_tokens_are_summed() -> None:
    """Over all rows, in one spelling."""
    api = FilesFake(out=lines(ok("a", prompt_tokens=1, total_tokens=5), ok("b", input_tokens=2, output_tokens=4)))
    move = Place(["a", "b"]).download(api, "out")
    assert move.changes["usage"] == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 5}


def test_an_ok_answer_wins_over_another_with_the_same_id() -> None:
    """In either order; the others are told as anomalies and are no rows."""
    api = FilesFake(
        out=lines(ok("a", "one"), ok("a", "two"), ok("b")), err=lines(bad("a"), bad("c"), bad("c"), bad("x"))
    )
    for files in (("out", "err"), ("err", "out")):
        place = Place(["a", "b", "c"])
        move = place.download(api, *files)
        assert numbers(move) == (2, 1, 0)
        assert place.rows(move)[0] == b"+" + ok("a", "one")
        kind, told = move.events[0]
        assert (kind, told["duplicates"], told["unknown"], told["lines"]) == ("anomaly", 3, 1, 7)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (ok("a")[:-1], None),
        (ok("a") + b"\n" + ok("b")[:20], None),
        (lines(ok("a")), len(lines(ok("a"), ok("b")))),
        (b"<html>", None),
        (b"[]", None),
    ],
)
def test_a_cut_file_is_fetched_again(data: bytes, told: int | None) -> None:
    """It must not look like missing rows."""
    place = Place(["a", "b"])
    with pytest.raises(Unavailable, match="cut short"):
        place.download(FilesFake({"out": told}, out=data), "out")
    assert place.workspace.names() == ["shards"]


def test_a_file_that_is_longer_than_told_time_and_again_is_whole() -> None:
    """Some servers count characters, not bytes: what is longer is not cut, and every line of it parses."""
    place, data, fetched = Place(["a", "b"]), lines(ok("a", "éé"), ok("b")), list[str]()

    class Watched(FilesFake):
        def download(self, file_id: str, sink: BinaryIO, check: Callable[[], None]) -> int:
            fetched.append(file_id)
            return super().download(file_id, sink, check)

    assert numbers(place.download(Watched({"out": len(data) - 2}, out=data), "out")) == (2, 0, 0)
    assert fetched == ["out"] * FETCHES_AT_ONCE


def test_a_line_that_is_no_strict_json_is_an_answer_all_the_same() -> None:
    """Python servers write NaN for a log probability, and half a surrogate pair for a text that was cut."""
    odd = ok("a").replace(b'"fine"', b'{"logprob": -Infinity, "text": "\\ud83d"}')
    bad_line = bad("b").replace(b'"no"', b"NaN")
    place = Place(["a", "b"])
    move = place.download(FilesFake(out=lines(odd), err=lines(bad_line)), "out", "err")
    assert numbers(move) == (1, 1, 0)
    first, second = place.rows(move)
    assert first == b"+" + odd
    assert json.loads(second[1:])["error"] == {"code": "batch_expired", "message": None}


def test_a_line_of_a_whole_file_that_nobody_can_read_does_not_keep_the_others() -> None:
    """It is fetched anew a few times; then the rows without an answer are missing for good, for one of them is paid."""
    place, api = Place(["a", "b", "c"]), FilesFake(out=lines(ok("a"), b'{"custom_id": "b", "respo', ok("c")))
    for fetches in range(3):
        move = place.download(api, "out", fetches=fetches)
        assert (move.stage, move.changes) == (Stage.ENDED, {"fetches": fetches + 1})
    move = place.download(api, "out", fetches=3)
    assert (numbers(move), move.changes["resend"]) == ((2, 0, 1), 0)
    assert move.changes["error"].code == "answer_unreadable"
    with pytest.raises(Unavailable, match="cut short"):
        place.download(FilesFake({"out": None}, out=api.files["out"]), "out", fetches=3)


def test_answers_that_were_counted_and_never_named_a_file_are_not_sent_again() -> None:
    """They are paid; the provider's mistake must not cost them twice."""
    place = Place(["a", "b"])
    move = place.download(FilesFake(err=lines(bad("b"))), None, "err", counts=Counts(completed=1, failed=1), fetches=3)
    assert (numbers(move), move.changes["resend"]) == ((0, 1, 1), 1)
    assert json.loads(place.rows(move)[0][1:])["error"]["code"] == "output_file_missing"


def test_a_size_that_is_not_told_is_not_compared() -> None:
    """Null, or 0 for a file that is not empty."""
    for told in (None, 0):
        assert numbers(Place(["a"]).download(FilesFake({"out": told}, out=ok("a")), "out")) == (1, 0, 0)


def test_fewer_lines_than_counted_are_not_believed_at_once() -> None:
    """Three times the files are fetched anew, with growing pauses; then the rows are missing."""
    place, api = Place(["a", "b", "c"]), FilesFake(out=ok("a"))
    for fetches, pause in ((0, 2.0), (1, 4.0), (2, 8.0)):
        move = place.download(api, "out", counts=Counts(completed=2, failed=1), fetches=fetches)
        assert (Stage.ENDED, pause, {"fetches": fetches + 1}) == (move.stage, move.after, move.changes)
    move = place.download(api, "out", counts=Counts(completed=2, failed=1), fetches=3)
    assert numbers(move) == (1, 0, 2)
    assert move.events == [("anomaly", {"lines": 1, "told": 3, "short": 2, "duplicates": 0, "unknown": 0})]


@pytest.mark.parametrize("counts", [Counts(), Counts(total=9), Counts(completed=1), Counts(completed=0, failed=0)])
def test_counts_that_are_not_told_are_not_compared(counts: Counts) -> None:
    """Some providers never tell."""
    assert numbers(Place(["a", "b"]).download(FilesFake(out=ok("a")), "out", counts=counts)) == (1, 0, 1)


def test_rows_of_a_file_that_is_gone_are_missing_with_that_reason() -> None:
    """They may have been paid: so they are final, and fetching anew is no use."""
    place = Place(["a", "b"])
    api = FilesFake(err=bad("b"))
    for unfound in range(MAX_GONE - 1):  # one answer that it is gone may be a mistake, and the rows are paid
        move = place.download(api, "out", "err", counts=Counts(completed=1, failed=1), unfound=unfound)
        assert (move.stage, move.changes) == (Stage.ENDED, {"unfound": unfound + 1})
    move = place.download(api, "out", "err", counts=Counts(completed=1, failed=1), unfound=MAX_GONE - 1)
    assert numbers(move) == (0, 1, 1)
    assert json.loads(place.rows(move)[0][1:])["error"]["code"] == "file_gone"
    assert move.changes["error"].code == "file_gone"


def test_a_file_whose_size_cannot_be_asked_is_fetched_all_the_same() -> None:
    """Some providers have the content but not the description."""
    api = FilesFake(out=ok("a"))
    del api.told["out"]
    assert numbers(Place(["a"]).download(api, "out")) == (1, 0, 0)


def test_a_batch_that_was_refused_fails_its_rows() -> None:
    """Rows whose line is named with their own error, the others with the first."""
    place = Place(["a", "b", "c"], status="failed")
    errors = [
        BatchError(code="invalid_request", message="first"),
        BatchError(code="invalid_json_line", message="second", line=3),
    ]
    move = place.download(FilesFake(), None, None, errors=errors)
    assert numbers(move) == (0, 3, 0)
    found = [json.loads(row[1:])["error"] for row in place.rows(move)]
    assert [(error["code"], error["message"]) for error in found] == [("invalid_request", "first")] * 2 + [
        ("invalid_json_line", "second")
    ]
    assert move.changes["error"] == Problem(code="invalid_request", message="first")


def test_a_refusal_without_a_reason_says_so() -> None:
    """A row is never failed without a word."""
    place = Place(["a"], status="failed")
    move = place.download(FilesFake())
    assert json.loads(place.rows(move)[0][1:])["error"]["code"] == "batch_failed"


def test_an_error_of_the_shard_is_that_of_its_rows() -> None:
    """A create that was refused has no batch at all."""
    place = Place(["a"])
    problem = Problem(code="billing_hard_limit_reached", message="no money")
    move = download(JOB, place.shard.evolve(error=problem), place.workspace, FilesFake(), "tok", check=nothing)
    assert numbers(move) == (0, 1, 0)
    assert move.changes["error"] == problem


def test_an_abandoned_shard_has_only_missing_rows() -> None:
    """Each with the reason."""
    place = Place(["a", "b"], round=2)
    problem = Problem(code="cancelled", message="the job was cancelled")
    move = abandon(JOB, place.shard, place.workspace, "tok", problem, check=nothing)
    assert numbers(move) == (0, 0, 2)
    rows = [json.loads(row[1:]) for row in place.rows(move)]
    assert [(r["custom_id"], r["outcome"], r["attempts"]) for r in rows] == [("a", "missing", 2), ("b", "missing", 2)]
    assert rows[0]["error"] == {"code": "cancelled", "message": "the job was cancelled"}
    assert problem == move.changes["error"]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_request_file_that_does_not_fit_the_record_is_told_with_numbers(rows: int) -> None:
    """It must never be papered over."""
    place = Place(["a", "b"])
    with pytest.raises(BatchpipeError, match=f"{rows} rows planned, 2 in its file"):
        place.download(FilesFake(), rows=rows)
    assert place.workspace.names() == ["shards"]


def test_a_lost_lease_ends_the_download() -> None:
    """And no collected file appears."""
    place = Place(["a"])

    def check() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        download(
            JOB, place.shard.evolve(output_file_id="out"), place.workspace, FilesFake(out=ok("a")), "t", check=check
        )
    assert place.workspace.names() == ["shards"]


@given(st.lists(st.sampled_from(["ok", "bad", "missing", "both", "twice"]), min_size=1, max_size=40), st.randoms())
@settings(max_examples=100, deadline=None)
def test_every_row_is_accounted_for_once(fates: list[str], chance: random.Random) -> None:
    """However the lines are shuffled, repeated and spread over the files."""
    output, error = [], []
    for number, fate in enumerate(fates):
        name = f"row {number}"
        if fate in ("ok", "both", "twice"):
            output += [ok(name)] * (2 if fate == "twice" else 1)
        if fate in ("bad", "both"):
            error.append(bad(name))
    chance.shuffle(output)
    chance.shuffle(error)
    place = Place([f"row {number}" for number in range(len(fates))])
    move = place.download(FilesFake(out=lines(*output), err=lines(*error)), "out", "err")
    good = sum(fate in ("ok", "both", "twice") for fate in fates)
    assert (good, fates.count("bad"), fates.count("missing")) == numbers(move)
    for number, (fate, row) in enumerate(zip(fates, place.rows(move), strict=True)):
        assert json.loads(row[1:])["custom_id"] == f"row {number}"
        assert row[:1] == {"bad": b"f", "missing": b"m"}.get(fate, b"+")


@pytest.mark.parametrize("line", [b'{"custom_id": null, "error": {}}', b'{"error": {"code": "invalid"}}'])
def test_a_whole_line_of_nobody_is_an_anomaly(line: bytes) -> None:
    """It is not cut, so fetching it for ever would not help."""
    move = Place(["a"]).download(FilesFake(out=lines(line, ok("a"))), "out")
    assert numbers(move) == (1, 0, 0)
    assert move.events[0][1]["unknown"] == 1


def _embeddings(name: str, count: int) -> bytes:
    body = {"object": "list", "data": [{"embedding": [0.5]}] * count, "model": "m", "usage": {"prompt_tokens": 9}}
    return json.dumps({"custom_id": name, "response": {"status_code": 200, "body": body}}).encode()


def test_a_row_with_fewer_embeddings_than_inputs_is_failed_and_its_tokens_count() -> None:
    """For good, for they were paid; one with as many, or with one input, is ok."""
    workspace = Folder(f"memory://{uuid.uuid4().hex}")
    inputs: dict[str, Any] = {"a": ["x", "y"], "b": ["x", "y"], "c": "x", "d": [1, 2, 3]}
    with workspace.writer("shards/x.jsonl") as file:
        for name, value in inputs.items():
            row = {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": value}}
            file.write(json.dumps(row).encode() + b"\n")
    out = lines(_embeddings("a", 1), _embeddings("b", 2), _embeddings("c", 1), _embeddings("d", 1))
    shard = ShardRecord(job="job_x", index=0, rows=4, file="shards/x.jsonl", output_file_id="out")
    job = JobRecord(id="job_x", endpoint="/v1/embeddings")
    move = download(job, shard, workspace, FilesFake(out=out), "tok", check=nothing)
    assert numbers(move) == (3, 1, 0)
    assert (move.changes["resend"], move.changes["usage"]) == (0, {"input_tokens": 36})
    with workspace.reader(move.changes["collected_file"]) as file:
        first = file.readline()
    assert first[:1] == b"F"
    failed = json.loads(first[1:])
    assert failed["response"] == json.loads(_embeddings("a", 1))["response"]
    assert failed["error"] == {"code": "embeddings_missing", "message": "HTTP 200 with fewer embeddings than inputs"}


def test_early_ends_are_counted_for_the_answers_that_are_kept() -> None:
    """One that came twice counts once."""

    def cut(name: str, reason: str) -> bytes:
        body = {"object": "chat.completion", "choices": [{"finish_reason": reason}]}
        return json.dumps({"custom_id": name, "response": {"status_code": 200, "body": body}}).encode()

    place = Place(["a", "b", "c"])
    out = lines(bad("a"), cut("a", "length"), cut("a", "length"), cut("b", "stop"), cut("c", "content_filter"))
    move = place.download(FilesFake(out=out), "out")
    assert move.changes["incomplete"] == {"length": 1, "content_filter": 1}
