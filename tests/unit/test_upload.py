"""Uploading: a shard's file becomes a file at the provider, and may do so more than once."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchpipe.errors import LeaseLost, Refused, StorageTrouble, Unavailable
from batchpipe.model.records import ShardRecord, Stage
from batchpipe.pipeline.steps.upload import upload
from batchpipe.storage import Folder
from batchpipe.testing import FakeOpenAI

NOW = 1_000_000.0
WHEN: dict[str, float] = {"now": NOW, "longest": 6 * 3_600.0}
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
    """Job, shard and try: orphans can be told from files in use."""
    api = FakeOpenAI()
    move = upload(shard, workspace, api, **WHEN, check=nothing)
    (file_id,) = api.files
    assert (move.stage, move.changes) == (Stage.UPLOADED, {"file_id": file_id})
    assert (api.files[file_id].name, api.files[file_id].data) == ("batchpipe-job_x-3-2.jsonl", DATA)


def test_a_repeated_upload_is_another_file(workspace: Folder, shard: ShardRecord) -> None:
    """It costs nothing; the record names the one that counts."""
    api = FakeOpenAI()
    first, second = (upload(shard, workspace, api, **WHEN, check=nothing).changes["file_id"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize("error", [Unavailable("down"), Refused("too large", status=413)])
def test_the_providers_no_comes_through(workspace: Folder, shard: ShardRecord, error: Exception) -> None:
    """The pipeline decides what it means."""
    api = FakeOpenAI()
    api.fail_next("upload", error)
    with pytest.raises(type(error)):
        upload(shard, workspace, api, **WHEN, check=nothing)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("too many files", code="quotaExceeded", status=400), "file_quota"),
        (Refused("The limit of 500 files is reached", code="too_many_files", status=400, param="file"), "file_quota"),
        (Refused("storage full", code="http_507", status=507), "file_quota"),
        (Refused("not today", code="http_400", status=400), "http_400"),
        (Refused("{'detail': 'Not Found'}", status=404), "refused"),
    ],
)
def test_a_refusal_that_concerns_the_account_is_waited_out(
    workspace: Folder, shard: ShardRecord, error: Refused, code: str
) -> None:
    """Nothing of the rows was looked at by then; it ends after hours, and says what to do."""
    api = FakeOpenAI()
    api.fail_next("upload", error, times=2)
    move = upload(shard, workspace, api, **WHEN, check=nothing)
    assert (move.stage, move.changes["trouble"].code, move.changes["refused_at"]) == (Stage.PLANNED, code, NOW)
    assert [event for event, _ in move.events] == ["refused_for_now"]
    late = shard.evolve(refused_at=NOW - WHEN["longest"])
    with pytest.raises(Refused, match=r"waited for 6 h.*batchpipe retry job_x") as caught:
        upload(late, workspace, api, **WHEN, check=nothing)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "error",
    [
        Refused("too large", code="file_too_large", status=413),
        Refused("Invalid file format", code="invalid_format", status=400, param="file"),
        Refused("'batch' is not one of these", status=400, param="purpose"),
    ],
)
def test_a_refusal_that_names_what_was_sent_is_final(workspace: Folder, shard: ShardRecord, error: Refused) -> None:
    """Too large, of a kind that is not taken; a file that is too large is told its size."""
    api = FakeOpenAI()
    api.fail_next("upload", error)
    with pytest.raises(Refused) as caught:
        upload(shard, workspace, api, **WHEN, check=nothing)
    assert ("MAX_BYTES" in str(caught.value)) == (error.status == 413)


def test_our_own_old_files_are_named_as_what_could_make_room(workspace: Folder, shard: ShardRecord) -> None:
    """How many, how large, and how to delete them."""
    api = FakeOpenAI()
    upload(shard, workspace, api, **WHEN, check=nothing)
    api.fail_next("upload", Refused("full", code="quotaExceeded", status=400))
    said = upload(shard, workspace, api, **WHEN, check=nothing).changes["trouble"].message
    assert "1 of them (0.2 MB) are batchpipe's own uploads" in said
    assert "batchpipe files --delete" in said


def test_a_lost_lease_ends_the_transfer(workspace: Folder, shard: ShardRecord) -> None:
    """It is asked as the file goes up."""

    def lost() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        upload(shard, workspace, FakeOpenAI(), **WHEN, check=lost)


def test_a_missing_file_is_trouble_of_the_storage(workspace: Folder, shard: ShardRecord) -> None:
    """A remote folder may show it later."""
    with pytest.raises(StorageTrouble):
        upload(shard.evolve(file="shards/none.jsonl"), workspace, FakeOpenAI(), **WHEN, check=nothing)
