"""Merging: results in the order of the input, every row once, and back again from the two files."""

from __future__ import annotations

import json
import random
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.errors import BatchpipeError, LeaseLost, OutputInUse
from batchpipe.model.answers import OutcomeState, error_line
from batchpipe.model.outcome import Outcome
from batchpipe.model.outcomes import FAILED, MISSING
from batchpipe.model.records import JobRecord, ShardRecord
from batchpipe.pipeline.manifest import manifest
from batchpipe.pipeline.results import iter_failed_lines, iter_failed_requests, iter_outcomes
from batchpipe.pipeline.sharding import Prepared
from batchpipe.pipeline.steps.merge import Merged, Overview, clean_up, merge, merge_what_is_left
from batchpipe.pipeline.steps.next_round import next_round
from batchpipe.storage import Folder

MARKS = {OutcomeState.FAILED: FAILED, OutcomeState.MISSING: MISSING}


def nothing() -> None:
    """A lease that is never lost."""


def read(folder: Folder, name: str) -> bytes:
    with folder.reader(name) as file:
        return file.read()


def put(folder: Folder, name: str, data: bytes) -> None:
    with folder.writer(name) as file:
        file.write(data)


class Scene:
    """Collected shards: for each row of the input its shard and outcome."""

    def __init__(self, rows: list[tuple[int, OutcomeState]], root: str = "") -> None:
        root = root or f"memory://{uuid.uuid4().hex}"
        self.workspace, self.output = Folder(root + "/work"), Folder(root + "/out")
        self.job = JobRecord(id="job_x", workspace=self.workspace.url, output=self.output.url, order_files=["order-t"])
        self.expected: dict[str, list[bytes]] = {"output.jsonl": [], "errors.jsonl": []}
        order = b"".join(b"%d 1\n" % shard for shard, _ in rows)
        put(self.workspace, "order-t", order)
        self.shards = [self.shard(index, rows) for index in sorted({shard for shard, _ in rows})]

    def shard(self, index: int, rows: list[tuple[int, OutcomeState]]) -> ShardRecord:
        collected, requests = [], []
        for number, (shard, outcome) in enumerate(rows):
            if shard == index:
                collected.append(self.line(number, outcome))
                requests.append(b'{"custom_id":"row %d"}\n' % number)
        put(self.workspace, f"collected/{index}", b"".join(collected))
        put(self.workspace, f"shards/{index}", b"".join(requests))
        counts = {outcome.value: 0 for outcome in OutcomeState}
        for shard, outcome in rows:
            counts[outcome.value] += shard == index
        return ShardRecord(
            job="job_x",
            index=index,
            rows=len(requests),
            file=f"shards/{index}",
            collected_file=f"collected/{index}",
            usage={"total_tokens": 10},
            ok=counts["ok"],
            failed=counts["failed"],
            missing=counts["missing"],
        )

    def line(self, number: int, outcome: OutcomeState) -> bytes:
        name = f"row {number}"
        if outcome == OutcomeState.OK:
            line = json.dumps({"custom_id": name, "response": {"body": number}, "error": None}).encode()
            return b"+" + line + b"\n"
        return MARKS[outcome] + error_line(name, outcome, 1, None, b'{"code":"x"}') + b"\n"

    def merge(self) -> Merged:
        return merge(self.job, self.shards, self.workspace, self.output, check=nothing)

    def outcomes(self) -> list[Outcome]:
        with self.workspace.reader("results.idx") as index:
            return list(iter_outcomes(self.output, index))

    def failed_requests(self) -> list[bytes]:
        files = {shard.index: shard.file for shard in self.shards}
        with self.workspace.reader("order-t") as order, self.workspace.reader("results.idx") as index:
            return list(iter_failed_requests(order, self.workspace, files, index))


ROWS = [
    (0, OutcomeState.OK),
    (1, OutcomeState.FAILED),
    (0, OutcomeState.MISSING),
    (1, OutcomeState.OK),
    (1, OutcomeState.OK),
]


def read_and_forgotten(shards: list[ShardRecord]) -> Iterator[ShardRecord]:
    """The same shards as from the store; whoever takes the next one has let go of all before the last."""
    before: list[ShardRecord] = []
    for shard in shards:
        before.append(msgspec.structs.replace(shard))
        yield before[-1]
        if len(before) == 2:
            assert sys.getrefcount(before.pop(0)) == sys.getrefcount(object())


def test_no_merge_holds_all_shards_of_its_job() -> None:
    """There may be 100,000, read from Redis by the thousand."""
    scene = Scene([(number, OutcomeState.OK) for number in range(5)])
    shards = scene.shards
    assert merge(scene.job, read_and_forgotten(shards), scene.workspace, scene.output, check=nothing).ok == 5
    left = merge_what_is_left(scene.job, read_and_forgotten(shards), scene.workspace, scene.output, check=nothing)
    assert left.ok == 5
    assert not Overview(scene.job, read_and_forgotten(shards)).gone
    assert next_round(scene.job, read_and_forgotten(shards), scene.workspace, "t", check=nothing).rows == 0
    plans = Prepared([], 0, "order-t")
    document = json.loads(b"".join(manifest(scene.job, read_and_forgotten(shards), plans, "here")))
    assert [shard["collected_file"] for shard in document["shards"]] == [shard.collected_file for shard in shards]


def test_results_come_in_the_order_of_the_input() -> None:
    """Ok rows in one file, all others in the other; the marks are gone."""
    scene = Scene(ROWS)
    merged = scene.merge()
    usage, reasons = {"total_tokens": 20}, {"- x": 2}
    assert merged == Merged(total=5, ok=3, failed=1, missing=1, usage=usage, reasons=reasons)
    ids = {
        name: [json.loads(line)["custom_id"] for line in read(scene.output, name).splitlines()]
        for name in ("output.jsonl", "errors.jsonl")
    }
    assert ids == {"output.jsonl": ["row 0", "row 3", "row 4"], "errors.jsonl": ["row 1", "row 2"]}
    assert read(scene.workspace, "results.idx") == b"1 2\n2 0\n"


def test_results_are_read_back_where_the_provider_wrote_nan(tmp_path: Path) -> None:
    """The line of an ok row is the provider's own."""
    scene = Scene([(0, OutcomeState.OK)], str(tmp_path))
    scene.merge()
    put(scene.output, "output.jsonl", b'{"custom_id":"a","response":{"body":{"logprob":-Infinity}},"error":null}\n')
    assert [outcome.response for outcome in scene.outcomes()] == [{"body": {"logprob": None}}]


def test_merging_again_gives_the_same_files(tmp_path: Path) -> None:
    """So a crash in between does no harm; what a killed merge left is removed."""
    scene = Scene(ROWS, str(tmp_path))
    scene.merge()
    before = {name: read(scene.output, name) for name in scene.output.names()}
    put(scene.output, ".output.jsonl.77-abcd.part", b"half")
    scene.merge()
    assert before == {name: read(scene.output, name) for name in scene.output.names()}
    assert sorted(before) == ["errors.jsonl", "output.jsonl"]


def test_both_files_are_there_even_if_empty() -> None:
    """Other programs open them without asking."""
    scene = Scene([(0, OutcomeState.OK)])
    scene.merge()
    assert read(scene.output, "errors.jsonl") == b""


def test_a_job_without_shards_writes_no_results() -> None:
    """It was cancelled before its input was read: what lies in its output is another's."""
    scene = Scene(ROWS)
    put(scene.output, "output.jsonl", b"paid for\n")
    assert merge(scene.job, [], scene.workspace, scene.output, check=nothing) == Merged()
    assert scene.output.names() == ["output.jsonl"]
    assert read(scene.output, "output.jsonl") == b"paid for\n"


def test_results_do_not_take_their_places_where_that_is_refused() -> None:
    """Whose the output is, is looked at when all is written and nothing has its name yet."""
    scene = Scene(ROWS)
    put(scene.output, "output.jsonl", b"another's\n")
    seen: list[tuple[int, ...]] = []

    def record_place(*sizes: int) -> None:
        seen.append(sizes)
        raise OutputInUse("another's")

    with pytest.raises(OutputInUse):
        merge(scene.job, scene.shards, scene.workspace, scene.output, check=nothing, record_place=record_place)
    assert scene.output.names() == ["output.jsonl"]
    assert read(scene.output, "output.jsonl") == b"another's\n"
    assert "results.idx" not in scene.workspace.names()
    scene.merge()
    assert seen == [tuple(scene.output.size(name) for name in ("output.jsonl", "errors.jsonl"))]


def test_outcomes_are_read_back_in_the_order_of_the_input() -> None:
    """From the two files, row by row."""
    scene = Scene(ROWS)
    scene.merge()
    rows = scene.outcomes()
    assert [(i, f"row {i}", outcome) for i, (_, outcome) in enumerate(ROWS)] == [
        (row.index, row.custom_id, row.state) for row in rows
    ]
    assert (rows[0].response, rows[0].error, rows[0].attempts) == ({"body": 0}, None, 1)
    assert (rows[1].response, rows[1].error, rows[1].attempts) == (None, {"code": "x"}, 1)


def test_without_the_index_the_ok_rows_come_first() -> None:
    """The output may outlive the workspace."""
    scene = Scene(ROWS)
    scene.merge()
    assert [row.custom_id for row in iter_outcomes(scene.output)] == ["row 0", "row 3", "row 4", "row 1", "row 2"]


def test_requests_of_failed_rows_are_given_for_a_retry() -> None:
    """As they were sent, in the order of the input; from the shards or from the input itself."""
    scene = Scene(ROWS)
    scene.merge()
    expected = [b'{"custom_id":"row 1"}\n', b'{"custom_id":"row 2"}\n']
    assert expected == scene.failed_requests()
    lines = [b'{"custom_id":"row %d"}\n' % number for number in range(5)]
    with scene.workspace.reader("results.idx") as index:
        assert expected == list(iter_failed_lines(lines, index))


@pytest.mark.parametrize("count", [4, 6])
def test_an_input_that_does_not_fit_the_results_is_told(count: int) -> None:
    """It was changed after the job: retrying would send other rows."""
    scene = Scene(ROWS)
    scene.merge()
    with scene.workspace.reader("results.idx") as index, pytest.raises(BatchpipeError, match="requests than"):
        list(iter_failed_lines([b"x\n"] * count, index))


def test_results_that_do_not_fit_their_index_are_told() -> None:
    """Somebody edited them."""
    scene = Scene(ROWS)
    scene.merge()
    whole = read(scene.output, "output.jsonl")
    for changed in (whole + whole, whole[: whole.index(b"\n") + 1]):
        put(scene.output, "output.jsonl", changed)
        with pytest.raises(BatchpipeError):
            scene.outcomes()


def test_more_shards_than_may_be_open_are_merged(tmp_path: Path) -> None:
    """They are closed and opened again where they were left."""
    rows = [(number % 150, OutcomeState.OK) for number in range(900)]
    scene = Scene(rows, str(tmp_path))
    assert scene.merge().ok == 900
    assert [f"row {number}" for number in range(900)] == [row.custom_id for row in scene.outcomes()]


@pytest.mark.parametrize("field", ["rows", "ok", "failed", "missing"])
def test_numbers_that_do_not_add_up_are_an_error_that_names_them(field: str) -> None:
    """And no result is written, so that nobody takes it for whole."""
    scene = Scene(ROWS)
    scene.shards[0] = scene.shards[0].evolve(**{field: 7})
    with pytest.raises(BatchpipeError, match=r"do not add up: .*merged 3 ok, 1 failed, 1 missing") as caught:
        scene.merge()
    assert caught.value.code == "rows_lost"
    assert scene.output.names() == []


@pytest.mark.parametrize("change", ["longer", "shorter", "damaged", "unknown"])
def test_files_that_do_not_fit_the_order_are_an_error(change: str) -> None:
    """Every collected file is read to its end, and not beyond."""
    scene = Scene(ROWS)
    whole = read(scene.workspace, "collected/0")
    changed = {"longer": whole + whole, "shorter": whole[: whole.index(b"\n") + 1], "damaged": b"?" + whole[1:]}
    if change == "unknown":
        put(scene.workspace, "order-t", read(scene.workspace, "order-t") + b"9 1\n")
    else:
        put(scene.workspace, "collected/0", changed[change])
    with pytest.raises(BatchpipeError):
        scene.merge()
    assert scene.output.names() == []


def test_a_lost_lease_ends_the_merge_without_results() -> None:
    """The drafts go too."""
    scene = Scene(ROWS)

    def check() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        merge(scene.job, scene.shards, scene.workspace, scene.output, check=check)
    assert scene.output.names() == []


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(OutcomeState)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_every_mixture_comes_back_in_order(rows: list[tuple[int, OutcomeState]]) -> None:
    """Through merge, the two files and the index; and the failed requests with it."""
    scene = Scene(rows)
    merged = scene.merge()
    assert merged.total == len(rows) == merged.ok + merged.failed + merged.missing
    assert [(f"row {i}", outcome) for i, (_, outcome) in enumerate(rows)] == [
        (row.custom_id, row.state) for row in scene.outcomes()
    ]
    failed = [b'{"custom_id":"row %d"}\n' % i for i, (_, outcome) in enumerate(rows) if outcome != OutcomeState.OK]
    assert failed == scene.failed_requests()


def test_cleaning_up_removes_what_is_large() -> None:
    """The index and the manifest stay, and so does an input that is not ours."""
    scene = Scene(ROWS)
    scene.merge()
    for name in ("manifest.json", "input.jsonl", "downloads/x", ".order-t.7-ab.part"):
        put(scene.workspace, name, b"x")
    job = scene.job.evolve(input=scene.workspace.path("input.jsonl"))
    clean_up(job, scene.workspace)
    assert scene.workspace.names() == ["input.jsonl", "manifest.json", "results.idx"]
    clean_up(job.evolve(spooled=True), scene.workspace)
    assert scene.workspace.names() == ["manifest.json", "results.idx"]
    assert len(scene.outcomes()) == 5


def test_a_chance_order_of_many_rows_is_restored(tmp_path: Path) -> None:
    """As prepare leaves it for mixed models."""
    chance = random.Random(3)
    rows = [(chance.randrange(7), chance.choice(list(OutcomeState))) for _ in range(5000)]
    scene = Scene(rows, str(tmp_path))
    scene.merge()
    assert [outcome for _, outcome in rows] == [row.state for row in scene.outcomes()]
