"""Records from a manifest and the provider's lists. Nothing is written here."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from batchpipe.errors import TOKEN_LIMIT, PermanentError
from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Batch
from batchpipe.model.reasons import add_reasons, final_ones
from batchpipe.model.records import JobRecord, Record, ShardRecord, Stage, State, Status
from batchpipe.pipeline.results import INDEX
from batchpipe.recover.accounts import AccountView
from batchpipe.recover.discovery import FoundJob
from batchpipe.storage import Folder, place_name

#: Represents a call that may have been under way when Redis lost its data: first, its batch is looked for, twice.
_UNANSWERED = "recovered"

_STALE = {field.encode_name for field in msgspec.structs.fields(Record)} - {"v", "stage"}


def read_records(manifest: dict[str, Any], found: FoundJob) -> tuple[JobRecord, list[ShardRecord]]:
    """The records from the manifest: shards of earlier rounds complete, those of its round without a batch.

    Raises PermanentError (``manifest_damaged``).
    """
    try:
        shards = [_shard(entry, found.job) for entry in manifest["shards"]]
        current = int(manifest.get("round") or 1)
        orders = manifest.get("order_files") or [manifest.get("order_file")]
        plain = {name: value for name, value in manifest.items() if name not in (*_STALE, "shards", "cancel")}
        queue = str(manifest.get("queue") or "")
        computed = {
            "workspace": found.workspace,
            "output": found.output,
            "owns": _owns(found, manifest),
            "round": current,
            "order_files": orders,
            "total": manifest.get("rows"),
            "cancel": found.cancelled,
            "input_here": manifest.get("input_here", ".run." in queue),
            "shards": max((shard.index for shard in shards), default=-1) + 1,
        }
        job = msgspec.convert({**plain, **computed}, JobRecord, strict=False)
    except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
        raise _damaged(found, str(error)) from None
    rounds = list(range(1, current + 1))
    if sorted({shard.round for shard in shards}) != rounds or len(orders) != current:
        raise _damaged(found, "its rounds and shards do not fit each other")
    if len({shard.index for shard in shards}) != len(shards):
        raise _damaged(found, "a shard is there twice")
    return job, [
        shard.evolve(stage=(Stage.COLLECTED if shard.round < current else Stage.PLANNED).value) for shard in shards
    ]


def read_submitted(found: FoundJob) -> JobRecord:
    """The record of a job that was submitted and not prepared, ready to be submitted again under its id.

    Raises PermanentError (``not_prepared``) if the record was not noted.
    """
    try:
        if found.record is None:
            raise TypeError
        plain = {name: value for name, value in found.record.items() if name not in _STALE}
        job = msgspec.convert({**plain, "id": found.job}, JobRecord, strict=False)
        place = {"workspace": found.workspace, "output": found.output, "owns": _owns(found, found.record)}
        return job.evolve(**place, cancel=found.cancelled)
    except (msgspec.ValidationError, TypeError):
        message = "it was submitted but not prepared, and no account that was read has a batch of it: submit it again"
        raise PermanentError(message, code="not_prepared") from None


def _owns(found: FoundJob, told: dict[str, Any]) -> list[str]:
    """Its output where that was found; and what a retry owns beside it."""
    more = told.get("owns") if told.get("retry_of") else None
    return [place_name(found.output), *(map(str, more[1:]) if isinstance(more, list) else ())]


def _shard(entry: dict[str, Any], job: str) -> ShardRecord:
    plain = {name: value for name, value in entry.items() if name not in _STALE}
    return msgspec.convert({**plain, "job": job}, ShardRecord, strict=False)


def _damaged(found: FoundJob, why: str) -> PermanentError:
    return PermanentError(f"its manifest in {found.workspace} cannot be used: {why}", code="manifest_damaged")


def check_files(job: JobRecord, shards: Sequence[ShardRecord]) -> None:
    """Raises PermanentError if files of the workspace are missing (``finished``: it was tidied up), StorageTrouble."""
    wanted = [*job.order_files, *(_needed(shard) for shard in shards)]
    workspace = Folder(job.workspace, private=True)
    there: dict[str, set[str]] = {}
    missing = []
    for name in wanted:
        folder = posixpath.dirname(name or "")
        if folder not in there:
            there[folder] = set(_names(workspace, folder))
        if not name or posixpath.basename(name) not in there[folder]:
            missing.append(name or "a collected file")
    if not missing:
        return
    if INDEX in workspace.names():
        raise PermanentError("it has ended: its results were written and its workspace is tidied up", code="finished")
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise PermanentError(
        f"its workspace {job.workspace} lacks {missing[0]}{more}: bring the files back, or fetch what its batches "
        "have brought from the provider by hand",
        code="files_missing",
    )


def _needed(shard: ShardRecord) -> str:
    return (shard.collected_file or "") if shard.stage == Stage.COLLECTED else shard.file


def _names(workspace: Folder, folder: str) -> list[str]:
    try:
        return workspace.names(folder)
    except ValueError:  # the name leads out of the workspace
        return []


def rebuild(
    job: JobRecord, shards: Iterable[ShardRecord], view: AccountView, now: float
) -> tuple[JobRecord, list[ShardRecord]]:
    """The records, completed with what the provider knows. Raises PermanentError (``cannot_match``)."""
    _check_knowable(job, view)
    epoch = int(now)
    restored = [
        (shard if shard.stage == Stage.COLLECTED else _found(job, shard, view, now)).evolve(epoch=epoch)
        for shard in shards
    ]
    unfinished = sum(shard.stage != Stage.COLLECTED for shard in restored)
    answered = sum(shard.answered or 0 for shard in restored)
    reasons: dict[str, int] = {}
    for shard in restored:
        add_reasons(reasons, final_ones(shard.reasons))
    changes = {"stage": State.RUNNING.value, "open": unfinished, "answered": answered, "reasons": reasons}
    return job.evolve(epoch=epoch, **changes), restored


def _check_knowable(job: JobRecord, view: AccountView) -> None:
    """A list without metadata and without names of files does not tell which shard its batches belong to."""
    since = job.created_at - CLOCK_SLACK_SECONDS
    unknown = sum(batch.created_at is None or batch.created_at >= since for batch in view.batches.values())
    if view.lacks_metadata and not view.names_files and unknown:
        raise PermanentError(
            f"the provider tells neither the metadata nor the input files of its {unknown} batches since then, so "
            "nobody can know which are paid for; look there by hand before you submit it again",
            code="cannot_match",
        )


def _found(job: JobRecord, shard: ShardRecord, view: AccountView, now: float) -> ShardRecord:
    batches = view.batches_of(job.id, shard.index)
    if not batches:
        return _without_batch(job, shard, view)
    tries = {batch.id: view.tags[batch.id].try_ for batch in batches}
    last = max(tries.values())
    spent = sorted(batch_id for batch_id, attempt in tries.items() if attempt < last)
    kept = min((batch for batch in batches if tries[batch.id] == last), key=worth)
    if kept.status == Status.FAILED and any(error.code == TOKEN_LIMIT for error in kept.errors):
        # the call of the next try may have been made: look for it first, which poll would not do
        return _next_try(job, shard, view, kept, last + 1, sorted(tries))
    return _with_files(shard, view, kept.input_file_id).evolve(
        stage=Stage.CREATED.value,
        try_=last,
        spent=spent,
        batch_id=kept.id,
        status=kept.status,
        counts=kept.counts,
        snapshot_at=now,
        created_at=kept.created_at or now,
    )


def worth(batch: Batch) -> tuple[bool, float, str]:
    """The order of preference among several batches of the same rows, the best first; as in the create step."""
    dead = batch.status in Status.FINAL - {Status.COMPLETED} or batch.status == "cancelling"
    return dead, batch.created_at or 0.0, batch.id


def _next_try(
    job: JobRecord, shard: ShardRecord, view: AccountView, kept: Batch, try_: int, spent: list[str]
) -> ShardRecord:
    stage = Stage.UPLOADED if kept.input_file_id else Stage.PLANNED
    return _with_files(shard, view, kept.input_file_id).evolve(
        stage=stage.value,
        try_=max(try_, _last_upload(view, shard)),
        spent=spent,
        intent_at=job.created_at,
        calls=[_UNANSWERED],
    )


def _without_batch(job: JobRecord, shard: ShardRecord, view: AccountView) -> ShardRecord:
    """The list has no paid batch of it; but a call may have been under way, so an intent is recorded."""
    try_ = _last_upload(view, shard)
    uploaded = [
        file.id
        for file in view.files_of(job.id, shard.index)
        if view.file_tags[file.id].try_ == try_ and file.bytes in (None, shard.bytes)
    ]
    # if batches may come without metadata, only our input file identifies that call's batch
    file_id = uploaded[0] if uploaded and view.lacks_metadata else None
    return _with_files(shard, view, file_id).evolve(
        stage=(Stage.UPLOADED if file_id else Stage.PLANNED).value,
        try_=try_,
        intent_at=job.created_at,
        calls=[_UNANSWERED],
    )


def _last_upload(view: AccountView, shard: ShardRecord) -> int:
    return max((view.file_tags[file.id].try_ for file in view.files_of(shard.job, shard.index)), default=1)


def _with_files(shard: ShardRecord, view: AccountView, file_id: str | None) -> ShardRecord:
    """Adds the files that were uploaded for it; one more upload may have been under way."""
    used = {batch.input_file_id for batch in view.batches_of(shard.job, shard.index)}
    unused = [file.id for file in view.files_of(shard.job, shard.index) if file.id not in (file_id, *used)]
    return shard.evolve(file_id=file_id, unused_files=unused, uploads=len(unused) + 2)


def stages(shards: Iterable[ShardRecord]) -> dict[str, int]:
    """How many shards are at each stage."""
    return dict(Counter(shard.stage for shard in shards))
