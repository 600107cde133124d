"""Uploading: a shard's file becomes a file at the provider, and may do so more than once."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchpipe.errors import LeaseLost, Refused, StorageTrouble, Unavailable
from batchpipe.jobs import ShardRecord, Stage
from batchpipe.steps.upload import upload
from batchpipe.storage import Folder
from batchpipe.testing import FakeOpenAI

DATA = b'{"custom_id":"r0"}\n' * 10_000


def nothing() -> None:
    """A lease that is never lost."""


@pytest.fixture
def workspace(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "work"), private=True)
    with folder.writer("shards/00003-t.jsonl") as file:
        file.write(DATA)
    return folder


@pytest.fixture
def shard() -> ShardRecord:
    return ShardRecord(job="job_x", index=3, try_=2, file="shards/00003-t.jsonl", bytes=len(DATA))


def test_the_file_is_uploaded_byte_for_byte_under_a_name_that_tells_whose_it_is(
    workspace: Folder, shard: ShardRecord
) -> None:
    """Job, shard and try: strays can be told from files in use."""
    api = FakeOpenAI()
    move = upload(shard, workspace, api, check=nothing)
    (file_id,) = api.files
    assert (move.stage, move.changes) == (Stage.UPLOADED, {"file_id": file_id})
    assert (api.files[file_id].name, api.files[file_id].data) == ("batchpipe-job_x-3-2.jsonl", DATA)


def test_a_repeated_upload_is_another_file(workspace: Folder, shard: ShardRecord) -> None:
    """It costs nothing; the record names the one that counts."""
    api = FakeOpenAI()
    first, second = (upload(shard, workspace, api, check=nothing).changes["file_id"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("error", [Unavailable("down"), Refused("too large", status=413)])
def test_the_providers_no_comes_through(workspace: Folder, shard: ShardRecord, error: Exception) -> None:
    """The pipeline decides what it means."""
    api = FakeOpenAI()
    api.fail_next("upload", error)
    with pytest.raises(type(error)):
        upload(shard, workspace, api, check=nothing)


def test_a_lost_lease_ends_the_transfer(workspace: Folder, shard: ShardRecord) -> None:
    """It is asked as the file goes up."""

    def lost() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        upload(shard, workspace, FakeOpenAI(), check=lost)


def test_a_missing_file_is_trouble_of_the_storage(workspace: Folder, shard: ShardRecord) -> None:
    """A remote folder may show it later."""
    with pytest.raises(StorageTrouble):
        upload(shard.evolve(file="shards/none.jsonl"), workspace, FakeOpenAI(), check=nothing)
