"""What killed turns leave: a copy of an input or of answers, and it is gone with the next turn, or with the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchpipe.errors import LeaseLost
from batchpipe.model.records import State
from batchpipe.pipeline.manifest import planned_orders
from batchpipe.pipeline.shard_files import ShardFiles
from batchpipe.pipeline.workspace_cleanup import remove_files_of_killed_turns, remove_leftovers
from batchpipe.storage import Folder
from batchpipe.testing import FakeOpenAI, Pump, Vanished

Rows = Callable[..., list[dict[str, object]]]
DEAD = "dead0"


def left_behind(workspace: Folder, token: str) -> None:
    """As a turn that was killed in the middle leaves it: a shard that is whole, one that is not, the order of both."""
    for name in (f"shards/00000-{token}.jsonl", f"shards/.00001-{token}.jsonl.7-ab.part", f".order-{token}.7-ab.part"):
        with workspace.writer(name) as file:
            file.write(b"x\n")


def nothing() -> None:
    """A lease that is never lost."""


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_prepare_removes_what_killed_ones_have_left(tmp_path: Path, chat_rows: Rows) -> None:
    """However often they were: one copy of the input is there when it is planned."""
    pump = Pump(tmp_path, api=FakeOpenAI())
    job_id = pump.submit(chat_rows(3))
    workspace = Folder(pump.job(job_id).workspace, private=True)
    for number in range(3):
        left_behind(workspace, f"dead{number}")
    assert len(workspace.names("shards")) == 6
    while pump.job(job_id).stage != State.RUNNING.value:
        assert pump.step() is not None
    assert len(workspace.names("shards")) == 1
    assert [name for name in workspace.names() if "dead" in name] == []


def test_a_turn_that_dies_after_its_files_were_written_leaves_one_copy(
    tmp_path: Path, chat_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where nothing could clean up any more, and prepared again."""
    pump = Pump(tmp_path, api=FakeOpenAI())
    job_id = pump.submit(chat_rows(3))
    announce = pump.job_runner._announce

    def die(*args: object) -> None:
        raise Vanished

    monkeypatch.setattr(pump.job_runner, "_announce", die)
    assert pump.step() is not None
    workspace = Folder(pump.job(job_id).workspace, private=True)
    first = workspace.names("shards")
    assert (pump.vanished, len(first)) == (1, 1)
    monkeypatch.setattr(pump.job_runner, "_announce", announce)
    while pump.job(job_id).stage != State.RUNNING.value:
        if pump.step() is None:
            pump.advance(60)
            pump.sweep()
    second = workspace.names("shards")
    assert len(second) == 1
    assert first != second


def test_what_the_manifest_names_stays_until_there_is_another(tmp_path: Path) -> None:
    """A Redis that loses everything in between is rebuilt from it."""
    workspace = Folder(str(tmp_path), private=True)
    with workspace.writer("manifest.json") as file:
        file.write(b'{\n  "order_files": ["order-kept"],\n  "shards": [\n  ]\n}\n')
    for token in ("kept", "other"):
        files = ShardFiles(workspace, token)
        files.write(0, b"x\n")
        files.commit(lambda: None)
    assert planned_orders(workspace) == ["order-kept"]
    remove_files_of_killed_turns(workspace, {"kept", "own"}, nothing)
    assert workspace.names("shards") == ["00000-kept.jsonl"]
    assert workspace.names() == ["manifest.json", "order-kept", "shards"]


def test_a_file_that_is_no_turns_own_is_left_alone(tmp_path: Path) -> None:
    """A copied input, the index, what a person has put there."""
    names = ["input.jsonl", "results.idx", "manifest.json", "shards/notes.txt", "order of things", "order-own"]
    workspace = Folder(str(tmp_path), private=True)
    for name in names:
        with workspace.writer(name) as file:
            file.write(b"x")
    remove_files_of_killed_turns(workspace, {"own"}, nothing)
    assert files_of(tmp_path) == sorted(names)


def test_a_job_that_has_ended_keeps_what_its_records_name(tmp_path: Path, chat_rows: Rows) -> None:
    """Also one whose workspace stays, for a retry."""
    pump = Pump(tmp_path, keep_workspace=True, api=FakeOpenAI(autofinish=True))
    job_id = pump.submit(chat_rows(3))
    workspace = Folder(pump.job(job_id).workspace, private=True)
    while pump.job(job_id).stage != State.RUNNING.value:
        assert pump.step() is not None
    left_behind(workspace, DEAD)
    for name in ("collected/00000-1-dead0.rows", "collected/.00000-1-dead0.rows.7-ab.part"):
        with workspace.writer(name) as file:
            file.write(b"x")
    pump.run_until_idle()
    job = pump.job(job_id)
    assert job.closed
    shard = pump.shards(job_id)[0]
    kept = [shard.collected_file, "manifest.json", job.order_files[0], "results.idx", shard.file]
    assert files_of(Path(job.workspace)) == sorted(name for name in kept if name)


def test_nothing_is_removed_for_a_turn_that_lost_its_lease(tmp_path: Path) -> None:
    """The files may be those of who has it now; also if the turn stood still between its look and its lease's end."""
    workspace = Folder(str(tmp_path), private=True)
    left_behind(workspace, DEAD)

    def lost() -> None:
        raise LeaseLost("another has it")

    def late() -> None:
        left_behind(workspace, "winner")

    for remove in (remove_files_of_killed_turns, remove_leftovers):
        with pytest.raises(LeaseLost):
            remove(workspace, {"own"}, lost)
    assert len(workspace.names("shards")) == 2
    remove_files_of_killed_turns(workspace, {"own"}, late)
    assert sorted(workspace.names("shards")) == [".00001-winner.jsonl.7-ab.part", "00000-winner.jsonl"]


def test_leftovers_are_removed_from_other_storages_too() -> None:
    """By their names, as everywhere."""
    workspace = Folder("memory://leftovers/work")
    left_behind(workspace, DEAD)
    files = ShardFiles(workspace, "own")
    files.write(0, b"x\n")
    files.commit(lambda: None)
    remove_leftovers(workspace, {"order-own", "shards/00000-own.jsonl"}, nothing)
    assert workspace.names("shards") == ["00000-own.jsonl"]
