"""The upload step: a shard's file becomes a file at the provider. May be repeated: it costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Protocol

from batchpipe.jobs import Move, ShardRecord, Stage
from batchpipe.storage import Folder
from batchpipe.storage.local import local_reader


class FilesApi(Protocol):
    """What this step may do at the provider."""

    def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str: ...


def upload(shard: ShardRecord, workspace: Folder, api: FilesApi, *, check: Callable[[], None]) -> Move:
    """Stream the shard's file up. Raises Unavailable, Paused, Refused, StorageTrouble, and what ``check`` raises."""
    with local_reader(workspace, shard.file, check) as handle:
        file_id = api.upload(handle, shard.upload_name, check)
    return Move(
        stage=Stage.UPLOADED,
        changes={"file_id": file_id},
        events=[("uploaded", {"file_id": file_id, "bytes": shard.bytes})],
    )
