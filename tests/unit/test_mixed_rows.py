"""However the rows of models, shards and rounds are mixed: as many batches, and as many calls of a store, as if not."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batchpipe.model.records import JobRecord
from batchpipe.pipeline.results import Round, ShardReader, iter_last
from batchpipe.pipeline.shard_files import ShardFiles
from batchpipe.pipeline.steps.prepare import prepare
from batchpipe.storage import Draft, Folder, Spill
from batchpipe.storage.spill import BLOCK

CHAT = "/v1/chat/completions"


class CountingFolder(Folder):
    """Counts what is opened, begun or read; ``calls`` is shared."""

    calls = 0

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        type(self).calls += 1
        return super().read_at(name, offset, length)

    def reader(self, name: str) -> Any:
        type(self).calls += 1
        return super().reader(name)

    def draft(self, name: str) -> Draft:
        type(self).calls += 1
        return super().draft(name)


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> CountingFolder:
    CountingFolder.calls = 0
    url = str(tmp_path / "work") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return CountingFolder(url, private=True)


@pytest.mark.parametrize("rows", [90, 9_000])
def test_nine_models_in_turn_make_nine_batches(folder: CountingFolder, rows: int, tmp_path: Path) -> None:
    """Wherever the workspace lies; and no more files are begun than there are shards."""
    with open(tmp_path / "in.jsonl", "w") as file:
        for number in range(rows):
            body = {"model": f"m{number % 9}", "messages": []}
            row = {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}
            file.write(json.dumps(row) + "\n")
    job = JobRecord(id="job_x", input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"))
    found = prepare(job, folder, "t", check=lambda: None)
    assert [shard.rows for shard in found.shards] == [rows // 9] * 9
    assert folder.calls == 9 + 2  # the shards, their order, and the probe whether it can be written


@pytest.mark.parametrize("rows", [90, 9_000])
def test_a_merge_reads_as_often_however_the_rows_are_mixed(folder: CountingFolder, rows: int) -> None:
    """Three models and three rounds: each file once in blocks, not once a row."""
    rounds, left = [], rows
    for number in range(3):
        files = ShardFiles(folder, f"t{number}")
        for row in range(left):
            files.write(row % 3, (b"f" if number < 2 and row % 2 else b"+") + b"%d\n" % row)
        files.commit(lambda: None)
        rounds.append(Round(f"order-t{number}", {index: files.name(index) for index in range(3)}))
        left //= 2
    CountingFolder.calls = 0
    with closing(iter_last(folder, rounds)) as lines:
        assert sum(1 for _ in lines) == rows
    assert folder.calls == 3 * (1 + 3)  # for each round its order, and a block of each shard


def test_more_shards_than_are_kept_are_read_on_from_where_they_were(folder: CountingFolder) -> None:
    """Their readers give way to each other."""
    files = ShardFiles(folder, "t")
    for row in range(30):
        files.write(row % 5, b"%d\n" % row)
    files.commit(lambda: None)
    with ShardReader(folder, {index: files.name(index) for index in range(5)}, 2) as reader:
        assert [int(reader.stream(row % 5).readline()) for row in range(30)] == list(range(30))
        assert reader.unread() == []


def test_rows_are_gathered_within_a_bound(folder: CountingFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is handed over early is whole and in order."""
    monkeypatch.setattr("batchpipe.pipeline.shard_files.MOST_PENDING", 500)
    files = ShardFiles(folder, "t")
    want: dict[int, bytes] = {}
    for row in range(2_000):
        line = b"%d " % row + b"x" * (row % 97) + b"\n"
        files.write(row % 7, line)
        want[row % 7] = want.get(row % 7, b"") + line
    files.commit(lambda: None)
    for index, data in want.items():
        assert folder.read_at(files.name(index), 0, 1 << 20) == data


def test_a_spill_uses_its_blocks_again() -> None:
    """So it is as large as what is unfinished, and has no name that a killed process could leave."""
    spill = Spill()
    for turn in range(20):
        spill.append(turn, b"%d" % (turn % 10) * (BLOCK + 1))
        assert b"".join(spill.take(turn)) == b"%d" % (turn % 10) * (BLOCK + 1)
    assert spill._end == 2
    spill.append(1, b"a")
    spill.append(2, b"b")
    spill.append(1, b"c")
    assert (b"".join(spill.take(1)), b"".join(spill.take(2)), list(spill.take(3))) == (b"ac", b"b", [])
    spill.close()
