"""Next round: the rows of a round that are worth sending again, into the shard files of a further round."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from batchpipe.errors import BatchpipeError
from batchpipe.model.asking_again import asked_again
from batchpipe.model.outcomes import FOR_NOW, INVALID_FOR_NOW, REFUSED_WITH_OTHERS
from batchpipe.model.recipe import Recipe
from batchpipe.model.records import JobRecord, ShardRecord
from batchpipe.model.requests import check_request
from batchpipe.pipeline.results import ShardReader, iter_in_order
from batchpipe.pipeline.shard_files import ShardFiles
from batchpipe.pipeline.sharding import NO_BOUNDS, Planner, Prepared
from batchpipe.storage import Checkpoint, Folder

#: The fields of shards that this step needs, as they are stored.
SENT = ("round", "refused_once", "collected_file", "file", "resend")


def next_round(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    workspace: Folder,
    token: str,
    *,
    check: Callable[[], None],
    model_bytes: Callable[[str | None], int | None] = lambda model: None,
    recipe: Recipe | None = None,
) -> Prepared:
    """Write the shard files and the order of the next round; the indexes of its shards go on from the job's.

    ``shards`` are those of the round that has just been collected, read once. ``token`` becomes part of every name.
    ``model_bytes``: the most bytes of a shard of a model; ``recipe``: that of the job.
    Raises StorageTrouble, BatchpipeError (``rows_lost``) if the rows do not add up, and what ``check`` raises.
    """
    files = ShardFiles(workspace, token)
    try:
        planner = Planner(
            files,
            job.endpoint,
            job.max_rows,
            job.max_bytes,
            first=job.shards,
            bounds=NO_BOUNDS._replace(model_bytes=model_bytes),
        )
        found = _scan(job, shards, workspace, files, planner, check, recipe)
        files.commit(check)
    except BaseException:
        files.discard()
        raise
    return found


def _scan(
    job: JobRecord,
    shards: Iterable[ShardRecord],
    workspace: Folder,
    files: ShardFiles,
    planner: Planner,
    check: Callable[[], None],
    recipe: Recipe | None,
) -> Prepared:
    answers, requested, refused_once, wanted = dict[int, str](), dict[int, str](), set[int](), 0
    for shard in shards:
        answers[shard.index], requested[shard.index] = shard.collected_file or "", shard.file
        refused_once |= {shard.index} if shard.refused_once else set()
        wanted += shard.resend
    rows, pace = 0, Checkpoint(check)
    with (
        workspace.reader(job.order_files[-1]) as order,
        ShardReader(workspace, answers, share=2) as collected,
        ShardReader(workspace, requested, share=2) as requests,
    ):
        for index, line in iter_in_order(order, collected):
            request = requests.stream(index).readline()
            pace(line)
            mark = line[:1]
            if mark in FOR_NOW:
                rows += 1
                if mark == INVALID_FOR_NOW and recipe is not None:
                    request = asked_again(request, line[1:], recipe, job.endpoint, job.max_bytes)
                checked = check_request(request, rows, job.endpoint)
                refused = mark == REFUSED_WITH_OTHERS or index in refused_once
                planner.place(checked, request, refused_once=refused)
    if rows != wanted:
        raise BatchpipeError(f"{wanted} rows are to be sent again, {rows} were found", code="rows_lost")
    return Prepared(planner.all(), rows, files.order_file)
