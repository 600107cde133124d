"""The upload step: a shard's file becomes a file at the provider. May be repeated: it costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from batchpipe.errors import BatchpipeError, Refused, Unavailable
from batchpipe.model.provider import Provider
from batchpipe.model.records import Move, Problem, ShardRecord, Stage
from batchpipe.model.refusals import is_no_room, upload_may_pass, wait_out
from batchpipe.model.retry import UPLOAD_REFUSED
from batchpipe.model.room import too_fast
from batchpipe.storage import Folder

#: How many of the account's files are looked at, to say what could be deleted to make room.
MOST_FILES = 10_000


def upload(
    shard: ShardRecord,
    workspace: Folder,
    api: Provider,
    *,
    now: float,
    longest: float,
    check: Callable[[], None],
) -> Move:
    """Upload the shard's file; a refusal that concerns the account is waited for up to ``longest`` seconds.

    Raises Unavailable, Paused, Refused, StorageTrouble, and what ``check`` raises.
    """
    try:
        with workspace.local_handle(shard.file, check) as handle:
            file_id = api.upload(handle, shard.upload_name, check)
    except Unavailable as error:
        if (waits := too_fast(shard, error, "uploads")) is None:
            raise
        return waits
    except Refused as error:
        if not upload_may_pass(error):
            raise _final(shard, error) from error
        problem, advice = _for_now(shard, error, api)
        return wait_out(shard, Stage.PLANNED, problem, now=now, longest=longest, policy=UPLOAD_REFUSED, advice=advice)
    return Move(
        stage=Stage.UPLOADED,
        changes={"file_id": file_id},
        events=[("uploaded", {"file_id": file_id, "bytes": shard.bytes})],
    )


def _final(shard: ShardRecord, error: Refused) -> Refused:
    message = error.message
    if error.status == 413:
        message = (
            f"{message} (a file of {shard.bytes} bytes was sent; with smaller ones: batchpipe retry {shard.job} "
            f"--max-bytes {max(shard.bytes // 2, 1)}, and for later jobs --max-bytes or the setting MAX_BYTES)"
        )
    return Refused(message, code=error.code, status=error.status, param=error.param)


def _for_now(shard: ShardRecord, error: Refused, api: Provider) -> tuple[Problem, str]:
    """What is wrong, and what a person can do about it."""
    if not is_no_room(error):
        advice = "is the account's base_url right, and may its key upload files?"
        return Problem(code=error.code, message=f"the provider does not take the file: {error.message}"), advice
    problem = Problem(code="file_quota", message=f"the provider has no room for another file: {error.message}")
    return problem, f"delete old files there: {_our_files(api)}"


def _our_files(api: Provider) -> str:
    """How many of the account's files are our own uploads, in words."""
    try:
        sizes = [
            file.bytes or 0
            for file in islice(api.iter_files(0.0), MOST_FILES)
            if file.name is not None and file.name.startswith("batchpipe-")
        ]
    except BatchpipeError as error:
        return f"which are batchpipe's own is not known ({error})"
    how = "`batchpipe files` lists them, and `batchpipe files --delete` deletes those of jobs that have ended"
    return f"{len(sizes)} of them ({sum(sizes) / 1e6:.1f} MB) are batchpipe's own uploads (batchpipe-*): {how}"
