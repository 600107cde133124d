"""Preparing: every row checked, split by the limits, the order remembered, repeated ids found."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.errors import InvalidInput, LeaseLost, StorageTrouble
from batchpipe.model.records import JobRecord
from batchpipe.pipeline.results import ShardReader, iter_in_order
from batchpipe.pipeline.sharding import Prepared
from batchpipe.pipeline.steps.prepare import prepare, validate
from batchpipe.storage import Folder

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def row(name: str, model: str = "m", url: str = CHAT, **body: Any) -> bytes:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"model": model, **body}}).encode()


def nothing() -> None:
    """A lease that is never lost."""


class Scene:
    """A job with its input and workspace."""

    def __init__(self, data: bytes, remote: bool = False, **changes: Any) -> None:
        self.root = Folder(f"memory://{uuid.uuid4().hex}")
        with self.root.writer("in.jsonl") as file:
            file.write(data)
        self.workspace = self.root.child("work")
        self.job = JobRecord(id="job_x", input=self.root.path("in.jsonl"), output=self.root.path("out"), **changes)

    def prepare(self, token: str = "t1") -> Prepared:
        return prepare(self.job, self.workspace, token, check=nothing)

    def shards(self, prepared: Prepared) -> list[bytes]:
        return [self.read(shard.file) for shard in prepared.shards]

    def read(self, name: str) -> bytes:
        with self.workspace.reader(name) as file:
            return file.read()

    def in_order(self, prepared: Prepared) -> list[bytes]:
        """The rows of the shards in the order that the order file tells."""
        assert prepared.order_file
        files = {shard.index: shard.file for shard in prepared.shards}
        with self.workspace.reader(prepared.order_file) as order, ShardReader(self.workspace, files, 2) as reader:
            lines = [line for _, line in iter_in_order(order, reader)]
            assert reader.unread() == []
        return lines


class LocalScene(Scene):
    def __init__(self, data: bytes, folder: Path, **changes: Any) -> None:
        (folder / "in.jsonl").write_bytes(data)
        self.workspace = Folder(str(folder / "out/work"), private=True)
        self.job = JobRecord(id="job_x", input=str(folder / "in.jsonl"), output=str(folder / "out"), **changes)


def refusal(scene: Scene) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        scene.prepare()
    assert scene.workspace.names("shards") == []
    return caught.value


def test_a_small_input_becomes_one_shard(tmp_path: Path) -> None:
    """Byte by byte the same, with a newline at its end."""
    data = row("a") + b"\r\n" + row("é") + b"\n" + row("c")
    scene = LocalScene(data, tmp_path)
    found = scene.prepare()
    shard = found.shards[0]
    assert scene.read(shard.file) == data + b"\n"
    assert (found.rows, len(found.shards), found.order_file) == (3, 1, "order-t1")
    assert (0, "shards/00000-t1.jsonl", 3, len(data) + 1, "m") == (
        shard.index,
        shard.file,
        shard.rows,
        shard.bytes,
        shard.model,
    )
    assert scene.read("order-t1") == b"0 3\n"


def test_private_files_come_of_private_workspaces(tmp_path: Path) -> None:
    """Nobody else reads the prompts."""
    scene = LocalScene(row("a"), tmp_path)
    scene.prepare()
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "out/work").rglob("*")}
    assert {0} == modes


def test_shards_are_cut_by_rows() -> None:
    """No shard has more than ``max_rows``."""
    scene = Scene(b"".join(row(str(i)) + b"\n" for i in range(7)), max_rows=3)
    found = scene.prepare()
    assert [shard.rows for shard in found.shards] == [3, 3, 1]
    assert scene.read("order-t1") == b"0 3\n1 3\n2 1\n"


def test_shards_are_cut_by_bytes_newlines_included() -> None:
    """A shard may be exactly as large as ``max_bytes``."""
    line = row("0") + b"\n"
    data = b"".join(row(str(i)) + b"\n" for i in range(6))
    sizes = {len(line) * 2: [2, 2, 2], len(line) * 3 - 1: [2, 2, 2], len(line) * 3: [3, 3]}
    for size, expected in sizes.items():
        found = Scene(data, max_bytes=size).prepare()
        assert expected == [shard.rows for shard in found.shards]
        assert all(shard.bytes <= size for shard in found.shards)


def test_a_row_that_fits_into_no_shard_is_refused() -> None:
    """With its line; a file without newlines is not read to its end."""
    scene = Scene(row("a") + b"\n" + row("b", text="x" * 100) + b"\n", max_bytes=len(row("b", text="x" * 100)))
    error = refusal(scene)
    assert error.line == 2
    assert "longer than" in str(error)
    assert refusal(Scene(row("b", text="x" * 100), max_bytes=len(row("b", text="x" * 100)))).line == 1


def test_embeddings_are_cut_by_their_inputs() -> None:
    """50,000 over a batch, however few rows have them."""
    counts = [30_000, 20_000, 1, 50_000, 2]
    data = b"\n".join(row(str(i), url=EMBEDDINGS, input=["x"] * count) for i, count in enumerate(counts))
    found = Scene(data, endpoint=EMBEDDINGS).prepare()
    assert [shard.rows for shard in found.shards] == [2, 1, 1, 1]


def test_other_endpoints_have_no_such_limit() -> None:
    """A shard may have more than 50,000 rows where the provider takes them."""
    data = b"".join(row(str(i)) + b"\n" for i in range(50_002))
    found = validate(Scene(data).job.input, CHAT, 100_000)
    assert [shard.rows for shard in found.shards] == [50_002]


def test_each_model_has_shards_of_its_own() -> None:
    """The provider takes one model per file; the order leads back."""
    lines = [row(str(i), model="abc"[i % 3]) + b"\n" for i in range(10)]
    scene = Scene(b"".join(lines))
    found = scene.prepare()
    assert [(shard.model, shard.rows) for shard in found.shards] == [("a", 4), ("b", 3), ("c", 3)]
    assert lines == scene.in_order(found)
    assert found.models == {"a": 4, "b": 3, "c": 3}


def test_a_hundred_models_in_turn_make_a_hundred_shards(tmp_path: Path) -> None:
    """More than may be open at once; local files are closed and continued."""
    lines = [row(str(i), model=f"m{i % 100}") + b"\n" for i in range(1000)]
    scene = LocalScene(b"".join(lines), tmp_path)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    found = scene.prepare()
    assert [shard.rows for shard in found.shards] == [10] * 100
    assert lines == scene.in_order(found)
    assert not before or len(os.listdir("/proc/self/fd")) <= before  # what is collected meanwhile is no leak


def test_remote_shards_are_as_many_as_local_ones() -> None:
    """An object cannot be continued: so it is gathered locally, and written when it is whole."""
    lines = [row(str(i), model=f"m{i % 10}") + b"\n" for i in range(40)]
    scene = Scene(b"".join(lines))
    found = scene.prepare()
    assert [shard.rows for shard in found.shards] == [4] * 10
    assert lines == scene.in_order(found)


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 60)), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(250, 600),
)
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_input_can_be_restored(rows: list[tuple[str, int]], max_rows: int, max_bytes: int) -> None:
    """Whatever the models, sizes and limits; every shard keeps the limits and one model."""
    lines = [row(str(i), model=model, text="x" * size) + b"\n" for i, (model, size) in enumerate(rows)]
    scene = Scene(b"".join(lines), max_rows=max_rows, max_bytes=max_bytes)
    found = scene.prepare()
    assert lines == scene.in_order(found)
    for shard, content in zip(found.shards, scene.shards(found), strict=True):
        assert (shard.rows, shard.bytes) == (content.count(b"\n"), len(content))
        assert shard.rows <= max_rows
        assert shard.bytes <= max_bytes
        assert {shard.model} == {json.loads(line)["body"]["model"] for line in content.splitlines()}
    report = validate(scene.job.input, CHAT, max_rows, max_bytes)
    assert (report.rows, report.bytes) == (found.rows, found.bytes)


def test_validate_tells_the_shards_without_writing_any(tmp_path: Path) -> None:
    """The same code, and nothing is left."""
    scene = LocalScene(b"\n".join(row(str(i), model="ab"[i % 2]) for i in range(9)), tmp_path)
    report = validate(scene.job.input, CHAT, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    found = prepare(scene.job.evolve(max_rows=2), scene.workspace, "t", check=nothing)
    assert [(s.index, s.rows, s.bytes, s.model) for s in report.shards] == [
        (s.index, s.rows, s.bytes, s.model) for s in found.shards
    ]


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\n"])
def test_an_empty_input_is_refused(data: bytes) -> None:
    """There is nothing to send."""
    assert "no rows" in str(refusal(Scene(data)))


@pytest.mark.parametrize("end", [b"\n\n", b"\n \r\n\t\n\n", b"\n" * 5_000])
def test_blank_lines_at_the_end_are_no_rows(end: bytes) -> None:
    """Editors and scripts leave them."""
    scene = Scene(row("a") + b"\n" + row("b") + end)
    assert prepare(scene.job, scene.workspace, "t", check=nothing).rows == 2


def test_a_blank_line_between_rows_is_refused_with_its_number() -> None:
    """A row may be missing there."""
    error = refusal(Scene(row("a") + b"\n\n\n" + row("b")))
    assert str(error) == "line 2: is blank; remove it"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04....", "zip archive or an Excel sheet"),
        (b"PAR1....", "Parquet"),
        ("id,text\n1,a\n".encode("utf-16"), "UTF-16"),
        (b"id,text\n1,a\n", "this looks like CSV: give --prompt"),
        (b"id\ttext\n1\ta\n", "looks like TSV"),
        (b"id;text\n1;a\n", "CSV with semicolons"),
        (b'[{"custom_id": "a"}]', "JSON array"),
        (b'{\n  "custom_id": "a"\n}', "over several lines"),
        (row("a")[:-20], "is the file cut off here?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_another_kind_is_recognised_by_its_first_bytes(data: bytes, says: str) -> None:
    error = refusal(Scene(data))
    assert says in str(error)
    assert error.line == 1


def test_a_bad_row_is_refused_with_its_line() -> None:
    """What was written before it is removed."""
    error = refusal(Scene(b"\n".join([row("a"), row("b"), b"{}", row("c")]), max_rows=1))
    assert (error.line, error.field) == (3, "custom_id")


def test_a_repeated_id_is_refused_with_both_lines() -> None:
    """Over the whole job, for results are joined by it."""
    names = ["a", "b", "c", "b", "c"]
    error = refusal(Scene(b"\n".join(row(name) for name in names), max_rows=2))
    assert str(error) == 'line 4: custom_id: "b" was used on line 2 already; give each row an id of its own'
    assert (error.line, error.field, error.code) == (4, "custom_id", "custom_id_repeated")


def test_ids_are_compared_as_text_not_as_they_are_written() -> None:
    """An escape is the same letter."""
    twice = row("é") + b"\n" + row("é").replace(b"\\u00e9", "é".encode())
    assert refusal(Scene(twice)).line == 2


def test_a_repeated_id_is_found_among_very_many(tmp_path: Path) -> None:
    """More than are compared in memory at once."""
    with open(tmp_path / "in.jsonl", "wb") as file:
        for i in range(300_000):
            file.write(b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m"}}\n' % i)
        file.write(row("5"))
    with pytest.raises(InvalidInput, match='line 300001: custom_id: "5" was used on line 6 already'):
        validate(str(tmp_path / "in.jsonl"), CHAT)


def test_a_lost_lease_ends_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    """Within about a MB of input; twins write under another token."""
    scene = LocalScene(b"\n".join(row(str(i)) for i in range(5000)), tmp_path)
    other = prepare(scene.job, scene.workspace, "other", check=nothing)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise LeaseLost

    with pytest.raises(LeaseLost):
        prepare(scene.job.evolve(max_rows=500), scene.workspace, "mine", check=check)
    left = {path.name for path in (tmp_path / "out/work").rglob("*") if path.is_file()}
    assert {"order-other", "00000-other.jsonl"} == left
    assert other.rows == 5000


def test_check_is_called_often_enough_to_keep_a_lease() -> None:
    """At least every 1,024 rows."""
    calls: list[int] = []
    scene = Scene(b"".join(row(str(i)) + b"\n" for i in range(10_240)))
    validate(scene.job.input, CHAT, check=lambda: calls.append(1))
    assert len(calls) >= 10


def test_an_input_that_changes_while_it_is_read_is_read_again_later(tmp_path: Path) -> None:
    """A file that is still being written must not become half a job."""
    scene = LocalScene(b"".join(row(str(i)) + b"\n" for i in range(3000)), tmp_path)

    def grow() -> None:
        with open(tmp_path / "in.jsonl", "ab") as file:
            file.write(b"\n")

    with pytest.raises(StorageTrouble, match="changed") as caught:
        prepare(scene.job, scene.workspace, "t", check=grow)
    assert caught.value.code == "input_changed"


def test_an_output_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    """Before the input is read."""
    scene = LocalScene(b"not json", tmp_path)
    (tmp_path / "out").touch()
    with pytest.raises(InvalidInput) as caught:
        scene.prepare()
    assert caught.value.code == "output_unwritable"


def test_a_missing_input_has_a_code() -> None:
    """What to do about it is the pipeline's decision."""
    scene = Scene(b"")
    with pytest.raises(StorageTrouble) as caught:
        prepare(scene.job.evolve(input="memory://no/such"), scene.workspace, "t", check=nothing)
    assert caught.value.code == "input_missing"


def test_no_number_of_models_fills_the_memory(tmp_path: Path) -> None:
    """Beyond a thousand unfinished shards the oldest is finished as it is; every row keeps its place."""
    lines = [row(str(i), model=f"m{i % 1100}") + b"\n" for i in range(1500)]
    scene = LocalScene(b"".join(lines), tmp_path)
    found = scene.prepare()
    assert lines == scene.in_order(found)
    assert len(found.shards) > 1100
