"""Downloading: every row of a shard is accounted for, whatever the provider's files look like."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.errors import BatchpipeError, Gone, LeaseLost
from batchpipe.model.lateness import CANCELLED_SECONDS, UNPAID_SECONDS
from batchpipe.model.provider import Batch
from batchpipe.model.records import BatchError, Counts, JobRecord, Move, Problem, ShardRecord, Stage
from batchpipe.pipeline import fetching
from batchpipe.pipeline.collecting import abandon
from batchpipe.pipeline.fetching import FETCHES_AT_ONCE
from batchpipe.pipeline.steps.download import GONE_SECONDS, download
from batchpipe.storage import Folder

JOB = JobRecord(id="job_x")
NOW, DAY = 1_000_000.0, 86_400.0
PATIENCE = 21_600.0


def nothing() -> None:
    """A lease that is never lost."""


class FilesFake:
    """The provider's files in memory. ``stated`` may differ from the true sizes; what is absent is gone."""

    def __init__(self, stated: dict[str, int | None] | None = None, **files: bytes) -> None:
        self.files = files
        self.sizes: dict[str, int | None] = {name: len(data) for name, data in files.items()}
        self.sizes.update(stated or {})
        self.batch = Batch(id="batch_1", status="completed")
        self.sees_batch = True  #: False: the key is of another project
        self.fetched: list[str] = []

    def not_for_downloads(self, *arguments: Any) -> Any:
        raise AssertionError("a download needs no more than this")

    file_status = file_name = iter_files = iter_batches = batch_page = not_for_downloads

    identity = ""

    def retrieve(self, batch_id: str) -> Batch:
        if not self.sees_batch:
            raise Gone(f"No batch found with id '{batch_id}'.", status=404)
        return self.batch

    def file_bytes(self, file_id: str) -> int | None:
        if file_id not in self.sizes:
            raise Gone(f"No such File object: {file_id}", status=404)
        return self.sizes[file_id]

    def download(self, file_id: str, sink: Any, check: Callable[[], None]) -> int:
        if file_id not in self.files:
            raise Gone(f"No such File object: {file_id}", status=404)
        self.fetched.append(file_id)
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


class Scene:
    """A shard in a workspace."""

    moves: list[Move]
    waited: float

    def __init__(self, names: list[str], **changes: Any) -> None:
        self.now = NOW
        self.workspace = Folder(f"memory://{uuid.uuid4().hex}")
        with self.workspace.writer("shards/00003-t.jsonl") as file:
            file.write(lines(*(json.dumps({"custom_id": name, "method": "POST"}).encode() for name in names)))
        self.shard = ShardRecord(job="job_x", index=3, rows=len(names), file="shards/00003-t.jsonl", **changes)

    def download(self, api: FilesFake, output: str | None = None, error: str | None = None, **changes: Any) -> Move:
        job, now = changes.pop("job", JOB), changes.pop("now", self.now)
        shard = self.shard.evolve(**{"output_file_id": output, "error_file_id": error, **changes})
        return download(job, shard, self.workspace, api, "tok", now=now, files_patience=PATIENCE, check=nothing)

    def through(self, api: FilesFake, output: str | None = None, error: str | None = None, **changes: Any) -> Move:
        """Turn after turn until it is collected. ``waited`` is how long that took, ``moves`` what came before."""
        self.moves, self.waited = [], 0.0
        self.shard = self.shard.evolve(output_file_id=output, error_file_id=error, **changes)
        while True:
            move = download(
                JOB,
                self.shard,
                self.workspace,
                api,
                "tok",
                now=NOW + self.waited,
                files_patience=PATIENCE,
                check=nothing,
            )
            if move.stage == Stage.COLLECTED:
                self.waited = round(self.waited, 2)
                return move
            assert move.after > 0
            self.moves.append(move)
            self.waited += move.after
            self.shard = self.shard.evolve(**move.changes)

    def rows(self, move: Move) -> list[bytes]:
        assert move.stage == Stage.COLLECTED
        with self.workspace.reader(move.changes["collected_file"]) as file:
            return file.read().split(b"\n")[:-1]


def numbers(move: Move) -> tuple[int, int, int]:
    return move.changes["ok"], move.changes["failed"], move.changes["missing"]


def test_rows_are_collected_in_the_order_of_the_requests() -> None:
    """Each with the provider's own line, from both files."""
    scene = Scene(["a", "b", "c", "d"])
    api = FilesFake(out=lines(ok("d"), ok("a", "é\u2028")), err=lines(bad("c")))
    move = scene.download(api, "out", "err")
    assert numbers(move) == (2, 1, 1)
    rows = scene.rows(move)
    assert rows[0] == b"+" + ok("a", "é\u2028")
    assert rows[3] == b"+" + ok("d")
    assert [row[:1] for row in rows[1:3]] == [b"m", b"f"]
    missing, failed = (json.loads(row[1:]) for row in rows[1:3])
    assert missing == {"custom_id": "b", "outcome": "missing", "attempts": 1, "response": None, "error": None}
    assert failed["outcome"] == "failed"
    assert failed["error"] == {"code": "batch_expired", "message": "no"}
    assert move.changes["collected_file"] == "collected/00003-1-tok.rows"
    assert move.changes["error"] is None
    assert scene.workspace.names() == ["collected", "shards"]


@pytest.mark.parametrize(("output", "error"), [(None, None), ("", ""), ("empty", ""), ("empty", "empty")])
def test_files_may_be_absent_or_empty(output: str | None, error: str | None) -> None:
    """Null, an empty id or an empty file all mean: no lines."""
    assert numbers(Scene(["a", "b"]).download(FilesFake(empty=b""), output, error)) == (0, 0, 2)


def test_a_last_newline_may_lack_and_blank_lines_do_not_count() -> None:
    """Both were seen at providers."""
    scene = Scene(["a", "b"])
    move = scene.download(FilesFake(out=b"\n" + ok("b") + b"\r\n\n" + ok("a")), "out", "")
    assert [b"+" + ok("a"), b"+" + ok("b")] == scene.rows(move)


def test_a_row_with_another_status_is_failed() -> None:
    """Also in the output file; its response is kept as it came."""
    scene = Scene(["a"])
    line = b'{"custom_id":"a","response":{"status_code":0,  "body":null},"error":null}'
    move = scene.download(FilesFake(out=line), "out")
    assert numbers(move) == (0, 1, 0)
    assert scene.rows(move) == [
        b'f{"custom_id":"a","outcome":"failed","attempts":1,"response":{"status_code":0,  "body":null},"error":null}'
    ]


def test_tokens_are_summed() -> None:
    """Over all rows, in one spelling."""
    api = FilesFake(out=lines(ok("a", prompt_tokens=1, total_tokens=5), ok("b", input_tokens=2, output_tokens=4)))
    move = Scene(["a", "b"]).download(api, "out")
    assert move.changes["usage"] == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 5}


def test_an_ok_answer_wins_over_another_with_the_same_id() -> None:
    """In either order; the others are told as anomalies and are no rows."""
    api = FilesFake(
        out=lines(ok("a", "one"), ok("a", "two"), ok("b")), err=lines(bad("a"), bad("c"), bad("c"), bad("x"))
    )
    for files in (("out", "err"), ("err", "out")):
        scene = Scene(["a", "b", "c"])
        move = scene.download(api, *files)
        assert numbers(move) == (2, 1, 0)
        assert scene.rows(move)[0] == b"+" + ok("a", "one")
        kind, stated = move.events[0]
        assert (kind, stated["duplicates"], stated["unknown"], stated["lines"]) == ("anomaly", 3, 1, 7)


@pytest.mark.parametrize(
    ("data", "stated"),
    [
        (ok("a")[:-1], None),
        (ok("a") + b"\n" + ok("b")[:20], None),
        (lines(ok("a")), len(lines(ok("a"), ok("b")))),
        (b"<html>", None),
        (b"[]", None),
    ],
)
def test_a_cut_file_is_fetched_again(data: bytes, stated: int | None) -> None:
    """It must not look like missing rows."""
    scene, api = Scene(["a", "b"]), FilesFake({"out": stated}, out=data)
    move = scene.download(api, "out")
    assert (move.stage, move.changes["late_at"]) == (Stage.ENDED, NOW)
    assert "cut short" in move.changes["trouble"].message
    assert scene.workspace.names() == ["shards"]
    api.files["out"], api.sizes["out"] = lines(ok("a"), ok("b")), None
    assert numbers(scene.download(api, "out", **move.changes)) == (2, 0, 0)


def test_a_file_that_is_longer_than_stated_time_and_again_is_whole() -> None:
    """Some servers count characters, not bytes: what is longer is not cut, and every line of it parses."""
    scene, data, fetched = Scene(["a", "b"]), lines(ok("a", "éé"), ok("b")), list[str]()

    class Watched(FilesFake):
        def download(self, file_id: str, sink: Any, check: Callable[[], None]) -> int:
            fetched.append(file_id)
            return super().download(file_id, sink, check)

    assert numbers(scene.download(Watched({"out": len(data) - 2}, out=data), "out")) == (2, 0, 0)
    assert fetched == ["out"] * FETCHES_AT_ONCE


def test_a_line_that_is_no_strict_json_is_an_answer_all_the_same() -> None:
    """Python servers write NaN for a log probability, and half a surrogate pair for a text that was cut."""
    odd = ok("a").replace(b'"fine"', b'{"logprob": -Infinity, "text": "\\ud83d"}')
    bad_line = bad("b").replace(b'"no"', b"NaN")
    scene = Scene(["a", "b"])
    move = scene.download(FilesFake(out=lines(odd), err=lines(bad_line)), "out", "err")
    assert numbers(move) == (1, 1, 0)
    first, second = scene.rows(move)
    assert first == b"+" + odd
    assert json.loads(second[1:])["error"] == {"code": "batch_expired", "message": None}


@pytest.mark.parametrize("stated", [None, 0, "true"])
@pytest.mark.parametrize("counts", [Counts(), Counts(completed=3, failed=0)])
def test_a_line_that_nobody_can_read_is_that_rows_outcome_once_two_fetches_gave_the_same(
    stated: Any, counts: Counts
) -> None:
    """Also where no size is told; the other rows are kept, and it is not sent again, for it is paid."""
    scene, data = Scene(["a", "b", "c"]), lines(ok("a"), b'{"custom_id": "b", "respo', ok("c"))
    size = len(data) if stated == "true" else stated
    move = scene.through(FilesFake({"out": size}, out=data), "out", counts=counts)
    assert (numbers(move), move.changes["resend"]) == ((2, 0, 1), 0)
    assert json.loads(scene.rows(move)[1][1:])["error"]["code"] == "answer_unreadable"
    assert (len(scene.moves), scene.waited) == (1, 2.0)


@pytest.mark.parametrize("counts", [Counts(), Counts(completed=3, failed=0)])
def test_a_line_that_nobody_can_read_in_a_file_that_is_shorter_than_stated_is_waited_for(counts: Counts) -> None:
    """A gateway may cut or spoil the same bytes twice: a minute would undo a verdict over a row that is paid."""
    scene, data = Scene(["a", "b"]), lines(ok("a"), b'{"custom_id": "b", "respo')
    move = scene.through(FilesFake({"out": len(data) + 40}, out=data), "out", counts=counts)
    assert (scene.waited, numbers(move), move.changes["resend"]) == (PATIENCE, (1, 0, 1), 0)


def test_an_unreadable_line_that_tells_its_row_condemns_no_other() -> None:
    """The provider counts two answers, and they are here: the third row was not run."""
    scene = Scene(["a", "b", "c"])
    api = FilesFake({"out": None}, out=lines(ok("a"), b'{"custom_id": "b", "respo'))
    move = scene.through(api, "out", counts=Counts(completed=2, failed=0))
    assert [row[:1] for row in scene.rows(move)] == [b"+", b"M", b"m"]


def test_an_unreadable_line_of_nobody_is_that_of_the_rows_that_the_provider_counts() -> None:
    """One of them is paid, and nobody knows which."""
    for counts, marks in ((Counts(completed=2, failed=0), b"MM"), (Counts(), b"MM"), (Counts(completed=1), b"mm")):
        scene = Scene(["a", "b", "c"])
        api = FilesFake({"out": None}, out=lines(ok("a"), b'{"id": "batch_req_1", "cus'))
        move = scene.through(api, "out", counts=counts)
        assert b"".join(row[:1] for row in scene.rows(move)) == b"+" + marks, counts


def test_bytes_that_change_from_fetch_to_fetch_are_no_outcome() -> None:
    """Until the patience is over."""
    scene = Scene(["a", "b"])

    class Torn(FilesFake):
        def download(self, file_id: str, sink: Any, check: Callable[[], None]) -> int:
            self.files["out"] = lines(ok("a"), b'{"custom_id": "b", %d' % len(self.fetched))
            return super().download(file_id, sink, check)

    move = scene.through(Torn({"out": None}, out=b""), "out")
    assert (scene.waited, move.changes["missing"], move.changes["resend"]) == (PATIENCE, 1, 0)


def test_an_error_page_in_place_of_a_file_is_waited_out() -> None:
    """The same bytes each time, and no line of ours: a proxy that is broken for hours must not cost paid rows."""
    scene, api = Scene(["a"]), FilesFake({"out": None}, out=b"<html>\n<h1>Bad gateway</h1>\n")
    move = scene.through(api, "out")
    assert (scene.waited, numbers(move), move.changes["resend"]) == (PATIENCE, (0, 0, 1), 0)
    assert len(scene.moves) < 70


def test_answers_that_were_counted_and_never_named_a_file_are_not_sent_again() -> None:
    """They are paid; the provider's mistake must not cost them twice."""
    scene = Scene(["a", "b"])
    move = scene.through(FilesFake(err=lines(bad("b"))), None, "err", counts=Counts(completed=1, failed=1))
    assert (numbers(move), move.changes["resend"], scene.waited) == ((0, 1, 1), 1, PATIENCE)
    assert json.loads(scene.rows(move)[0][1:])["error"]["code"] == "output_file_missing"


def test_how_long_a_file_is_matters_only_where_rows_have_no_answer() -> None:
    """Of a small shard whose rows are all counted that is asked once the file has come, and some row is not in it."""
    names, asked = [f"r{number}" for number in range(10)], list[str]()

    class Watched(FilesFake):
        def file_bytes(self, file_id: str) -> int | None:
            asked.append(file_id)
            return super().file_bytes(file_id)

    counts = Counts(total=10, completed=10, failed=0)
    api = Watched(out=lines(*map(ok, names)))
    assert numbers(Scene(names).download(api, "out", counts=counts)) == (10, 0, 0)
    assert (asked, api.fetched) == ([], ["out"])
    cut = Watched({"out": len(api.files["out"])}, out=lines(*map(ok, names[:9])))
    assert Scene(names).download(cut, "out", counts=counts).stage == Stage.ENDED  # the tenth is waited for
    assert set(asked) == {"out"}


def test_an_ok_answer_below_a_failed_one_of_its_row_is_not_missed_where_a_file_is_cut() -> None:
    """Every row has an answer, but fewer are ok than the provider counts: it is fetched anew."""
    names, counts = [f"r{number}" for number in range(3)], Counts(total=3, completed=3, failed=0)
    whole, cut = lines(bad("r0"), *map(ok, ["r1", "r2", "r0"])), lines(bad("r0"), *map(ok, ["r1", "r2"]))

    class CutOnce(FilesFake):
        def download(self, file_id: str, sink: Any, check: Callable[[], None]) -> int:
            self.files["out"] = whole if self.fetched else cut
            return super().download(file_id, sink, check)

    api = CutOnce({"out": len(whole)}, out=whole)
    assert numbers(Scene(names).download(api, "out", counts=counts)) == (3, 0, 0)
    assert api.fetched == ["out", "out"]


def test_a_file_without_end_is_not_fetched_whole_because_its_length_was_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is far longer than the answers of a small shard is asked for its length first."""
    monkeypatch.setattr(fetching, "UNSIZED_BYTES", 1_000)
    monkeypatch.setattr(fetching, "PROGRESS_BYTES", 10)
    names, asked = ["r0"], list[str]()

    class Watched(FilesFake):
        def file_bytes(self, file_id: str) -> int | None:
            asked.append(file_id)
            return super().file_bytes(file_id)

    api = Watched(out=lines(ok("r0")) + b"\n" * 5_000)
    assert numbers(Scene(names).download(api, "out", counts=Counts(total=1, completed=1, failed=0))) == (1, 0, 0)
    assert asked == ["out"]


def test_a_file_that_grows_late_is_waited_for_and_its_rows_are_not_sent_again() -> None:
    """The provider counts ten of ten; for minutes its file has fewer. What is waited for, since when, until when?"""
    names = [f"r{number}" for number in range(10)]
    scene, whole = Scene(names), lines(*map(ok, names))
    api = FilesFake(out=lines(*map(ok, names[:4])))
    counts = Counts(total=10, completed=10, failed=0)
    api.batch = Batch(id="batch_1", status="completed", output_file_id="out", counts=counts)
    first = scene.download(api, "out", counts=counts)
    trouble = first.changes["trouble"]
    assert (trouble.code, first.events[0][0], first.after) == ("answers_late", "answers_late", 2.0)
    assert "counts 10 answers, and its files have 4; waited for since 1970-01-12 13:46:40 UTC" in trouble.message
    fetched = list(api.fetched)
    again = scene.download(api, "out", now=NOW + 400, **first.changes)
    assert (again.stage, again.after, api.fetched) == (Stage.ENDED, 100.0, fetched)  # the same size: not fetched again
    api.files["out"], api.sizes["out"] = whole, len(whole)
    assert numbers(scene.download(api, "out", now=NOW + 500, **again.changes)) == (10, 0, 0)


@pytest.mark.parametrize(("status", "code"), [("expired", "batch_expired"), ("cancelled", "batch_cancelled")])
def test_answers_of_a_batch_that_ended_early_are_waited_for_though_other_rows_have_lines(
    status: str, code: str
) -> None:
    """Rows that were not run have lines, too, and are not counted: they must not stand for answers that lag."""
    scene, whole = Scene(list("abcde")), lines(ok("a"), ok("b"))
    api = FilesFake(out=b"", err=lines(*(bad(name, code) for name in "cde")))
    counts = Counts(total=5, completed=2, failed=0)
    api.batch = Batch(id="batch_1", status=status, output_file_id="out", error_file_id="err", counts=counts)
    first = scene.download(api, "out", "err", counts=counts, status=status)
    assert (first.stage, first.changes["trouble"].code) == (Stage.ENDED, "answers_late")
    api.files["out"], api.sizes["out"] = whole, len(whole)
    move = scene.download(api, "out", "err", now=NOW + 60, **{**first.changes, "status": status})
    assert (numbers(move), move.changes["resend"]) == ((2, 3, 0), 3)


def test_answers_of_an_expired_batch_that_never_come_are_missing_for_good() -> None:
    """They are paid. Rows that were not run are sent again."""
    scene = Scene(list("abcde"))
    api = FilesFake(out=b"", err=lines(*(bad(name) for name in "cde")))
    counts = Counts(total=5, completed=2, failed=0)
    move = scene.through(api, "out", "err", counts=counts, status="expired")
    assert (numbers(move), move.changes["resend"], scene.waited) == ((0, 3, 2), 3, PATIENCE)


@pytest.mark.parametrize("stated", [True, False])
def test_a_file_that_ends_within_a_line_is_waited_for_though_two_fetches_gave_the_same(stated: bool) -> None:
    """It still grows, with the size that is told of it: its last line is not unreadable, it is not whole yet."""
    scene, whole = Scene(["a", "b"]), lines(ok("a"), ok("b"))
    api, counts = FilesFake(out=whole[:-30]), Counts(total=2, completed=2, failed=0)
    api.batch = Batch(id="batch_1", status="completed", output_file_id="out", counts=counts)
    if stated:
        api.sizes["out"] = len(whole) - 30
    first = scene.download(api, "out", counts=counts)
    second = scene.download(api, "out", now=NOW + 2, **first.changes)
    assert (first.stage, second.stage) == (Stage.ENDED, Stage.ENDED)
    api.files["out"], api.sizes["out"] = whole, len(whole)
    assert numbers(scene.download(api, "out", now=NOW + 60, **second.changes)) == (2, 0, 0)


def test_a_file_id_that_comes_late_is_read_again() -> None:
    """The error file was named after the output file."""
    scene, api = Scene(["a", "b"]), FilesFake(out=lines(ok("a")), err=lines(bad("b", "invalid")))
    counts = Counts(completed=1, failed=1)
    first = scene.download(api, "out", counts=counts)
    assert first.stage == Stage.ENDED
    api.batch = Batch(id="b", status="completed", output_file_id="out", error_file_id="err", counts=counts)
    assert numbers(
        scene.download(
            api,
            "out",
            now=NOW + 2,
            **{**first.changes, "error_file_id": None},
        )
    ) == (1, 1, 0)


def test_counts_that_are_wrong_for_ever_end_with_missing_rows_that_are_not_sent_again() -> None:
    """After hours, with growing pauses."""
    scene, api = Scene(["a", "b", "c"]), FilesFake(out=lines(ok("a")))
    move = scene.through(api, "out", counts=Counts(completed=2, failed=0))
    assert (numbers(move), move.changes["resend"], scene.waited) == ((1, 0, 2), 0, PATIENCE)
    assert json.loads(scene.rows(move)[1][1:])["error"]["code"] == "answers_missing"
    pauses = [move.after for move in scene.moves[:-1]]
    assert pauses == sorted(pauses)
    assert len(pauses) < 70
    assert len(api.fetched) == 2  # whose size does not change


def test_rows_that_are_only_counted_as_failed_are_waited_for_some_minutes() -> None:
    """They are not paid."""
    scene, api = Scene(["a", "b"]), FilesFake(out=lines(ok("a")))
    move = scene.through(api, "out", counts=Counts(completed=1, failed=1))
    assert (numbers(move), move.changes["resend"], scene.waited) == ((1, 0, 1), 1, UNPAID_SECONDS)


def test_a_cancelled_job_waits_for_late_files_some_minutes_at_most() -> None:
    """It must end; what comes meanwhile is landed."""
    scene, api = Scene(["a", "b"]), FilesFake(out=lines(ok("a")))
    counts, job = Counts(completed=2, failed=0), JOB.evolve(cancel=True)
    first = scene.download(api, "out", counts=counts, job=job)
    assert "for the job is being cancelled" in first.changes["trouble"].message
    late = scene.download(api, "out", job=job, now=NOW + CANCELLED_SECONDS, **first.changes)
    assert numbers(late) == (1, 0, 1)


@pytest.mark.parametrize("stated", [1, 10_000])
def test_a_size_that_is_wrong_for_ever_ends(stated: int) -> None:
    """All rows are there: at once. Else what lacks is missing after the patience, and not sent again."""
    assert numbers(Scene(["a"]).download(FilesFake({"out": stated}, out=ok("a")), "out")) == (1, 0, 0)
    scene = Scene(["a", "b"])
    counts = Counts(completed=1, failed=0)
    assert numbers(scene.through(FilesFake({"out": stated}, out=ok("a")), "out", counts=counts)) == (1, 0, 1)
    assert scene.waited <= 2.0
    move = scene.through(FilesFake({"out": 10_000}, out=ok("a")), "out", counts=Counts())
    assert (numbers(move), move.changes["resend"], scene.waited) == ((1, 0, 1), 0, PATIENCE)


def test_a_size_that_is_not_stated_is_not_compared() -> None:
    """Null, or 0 for a file that is not empty."""
    for stated in (None, 0):
        assert numbers(Scene(["a"]).download(FilesFake({"out": stated}, out=ok("a")), "out")) == (1, 0, 0)


@pytest.mark.parametrize("counts", [Counts(), Counts(total=9), Counts(completed=1), Counts(completed=0, failed=0)])
def test_counts_that_are_not_stated_are_not_compared(counts: Counts) -> None:
    """Some providers never tell."""
    assert numbers(Scene(["a", "b"]).download(FilesFake(out=ok("a")), "out", counts=counts)) == (1, 0, 1)


def test_rows_of_a_file_that_is_gone_are_missing_with_that_reason() -> None:
    """They may have been paid: so they are final. One answer that it is gone may be a mistake, and so may an hour's."""
    scene, counts = Scene(["a", "b"]), Counts(completed=1, failed=1)
    api = FilesFake(err=bad("b"))
    first = scene.download(api, "out", "err", counts=counts)
    assert (first.stage, first.changes["unfound"], first.changes["unseen_at"]) == (Stage.ENDED, 1, NOW)
    assert first.changes["trouble"].code == "batch_unseen"
    seen = {"counts": counts, "unseen_at": NOW, "unfound": 99}
    scene.now = NOW + GONE_SECONDS - 1
    assert scene.download(api, "out", "err", **seen).stage == Stage.ENDED
    scene.now = NOW + GONE_SECONDS
    move = scene.download(api, "out", "err", **seen)
    assert numbers(move) == (0, 1, 1)
    assert json.loads(scene.rows(move)[0][1:])["error"]["code"] == "file_gone"
    assert move.changes["error"].code == "file_gone"


def test_a_key_that_sees_neither_file_nor_batch_is_of_another_project_and_a_day_is_given_to_mend_it() -> None:
    """Nor is it believed before the end of the batch's window."""
    scene, api = Scene(["a"], created_at=NOW), FilesFake()
    api.sees_batch = False
    for at, unseen_at in ((NOW, None), (NOW + DAY - 1, NOW), (NOW + 2 * DAY - 1, NOW + DAY)):
        scene.now = at
        move = scene.download(api, "out", unseen_at=unseen_at, unfound=9)
        assert (move.stage, move.changes["trouble"].code) == (Stage.ENDED, "batch_unseen")
        assert move.after <= 600
    scene.now = NOW + 2 * DAY
    assert scene.download(api, "out", unseen_at=NOW + DAY, unfound=9).changes["error"].code == "file_gone"


def test_a_file_whose_size_cannot_be_asked_is_fetched_all_the_same() -> None:
    """Some providers have the content but not the description."""
    api = FilesFake(out=ok("a"))
    del api.sizes["out"]
    assert numbers(Scene(["a"]).download(api, "out")) == (1, 0, 0)


def test_a_batch_that_was_refused_fails_its_rows() -> None:
    """Rows whose line is named with their own error, the others with the first."""
    scene = Scene(["a", "b", "c"], status="failed")
    errors = [
        BatchError(code="invalid_request", message="first"),
        BatchError(code="invalid_json_line", message="second", line=3),
    ]
    move = scene.download(FilesFake(), None, None, errors=errors)
    assert numbers(move) == (0, 3, 0)
    found = [json.loads(row[1:])["error"] for row in scene.rows(move)]
    assert [(error["code"], error["message"]) for error in found] == [("invalid_request", "first")] * 2 + [
        ("invalid_json_line", "second")
    ]
    assert move.changes["error"] == Problem(code="invalid_request", message="first")


def test_a_refusal_without_a_reason_says_so() -> None:
    """A row is never failed without a word."""
    scene = Scene(["a"], status="failed")
    move = scene.download(FilesFake())
    assert json.loads(scene.rows(move)[0][1:])["error"]["code"] == "batch_failed"


def test_an_error_of_the_shard_is_that_of_its_rows() -> None:
    """A create that was refused has no batch at all."""
    scene = Scene(["a"])
    problem = Problem(code="billing_hard_limit_reached", message="no money")
    move = download(
        JOB,
        scene.shard.evolve(error=problem),
        scene.workspace,
        FilesFake(),
        "tok",
        now=NOW,
        files_patience=PATIENCE,
        check=nothing,
    )
    assert numbers(move) == (0, 1, 0)
    assert move.changes["error"] == problem


def test_an_abandoned_shard_has_only_missing_rows() -> None:
    """Each with the reason."""
    scene = Scene(["a", "b"], round=2)
    problem = Problem(code="cancelled", message="the job was cancelled")
    move = abandon(JOB, scene.shard, scene.workspace, "tok", problem, check=nothing)
    assert numbers(move) == (0, 0, 2)
    rows = [json.loads(row[1:]) for row in scene.rows(move)]
    assert [(r["custom_id"], r["outcome"], r["attempts"]) for r in rows] == [("a", "missing", 2), ("b", "missing", 2)]
    assert rows[0]["error"] == {"code": "cancelled", "message": "the job was cancelled"}
    assert problem == move.changes["error"]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_request_file_that_does_not_fit_the_record_is_reported_with_numbers(rows: int) -> None:
    """It must never be papered over."""
    scene = Scene(["a", "b"])
    with pytest.raises(BatchpipeError, match=f"{rows} rows planned, 2 in its file"):
        scene.download(FilesFake(), rows=rows)
    assert scene.workspace.names() == ["shards"]


def test_a_lost_lease_ends_the_download() -> None:
    """And no collected file appears."""
    scene = Scene(["a"])

    def check() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        download(
            JOB,
            scene.shard.evolve(output_file_id="out"),
            scene.workspace,
            FilesFake(out=ok("a")),
            "t",
            now=NOW,
            files_patience=PATIENCE,
            check=check,
        )
    assert scene.workspace.names() == ["shards"]


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
    scene = Scene([f"row {number}" for number in range(len(fates))])
    move = scene.download(FilesFake(out=lines(*output), err=lines(*error)), "out", "err")
    good = sum(fate in ("ok", "both", "twice") for fate in fates)
    assert (good, fates.count("bad"), fates.count("missing")) == numbers(move)
    for number, (fate, row) in enumerate(zip(fates, scene.rows(move), strict=True)):
        assert json.loads(row[1:])["custom_id"] == f"row {number}"
        assert row[:1] == {"bad": b"f", "missing": b"m"}.get(fate, b"+")


@pytest.mark.parametrize("line", [b'{"custom_id": null, "error": {}}', b'{"error": {"code": "invalid"}}'])
def test_a_whole_line_of_nobody_is_an_anomaly(line: bytes) -> None:
    """It is not cut, so fetching it for ever would not help."""
    move = Scene(["a"]).download(FilesFake(out=lines(line, ok("a"))), "out")
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
    move = download(job, shard, workspace, FilesFake(out=out), "tok", now=0.0, files_patience=0.0, check=nothing)
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

    scene = Scene(["a", "b", "c"])
    out = lines(bad("a"), cut("a", "length"), cut("a", "length"), cut("b", "stop"), cut("c", "content_filter"))
    move = scene.download(FilesFake(out=out), "out")
    assert move.changes["incomplete"] == {"length": 1, "content_filter": 1}
