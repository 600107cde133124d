"""Decisions of a person about a job that is held, and collecting the batches that an ended job stopped waiting for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from batchpipe.errors import OutputInUse, PermanentError
from batchpipe.model.records import JobRecord
from batchpipe.model.refusals import LANDABLE
from batchpipe.pipeline.manifest import results_place
from batchpipe.pipeline.republish_many import PUBLISHED_AT_ONCE, republish_first
from batchpipe.pipeline.runner import Runner
from batchpipe.storage import Folder
from batchpipe.store import Store


def decide(runner: Runner, job_id: str, decision: Literal["resend", "land"]) -> bool:
    """End a job's hold: send the rows again, or only collect what is there. Returns whether it was held."""
    verdict, shards = runner.store.jobs.resolve_hold(job_id, decision, published=PUBLISHED_AT_ONCE)
    if verdict != "ok":
        return False
    runner.log(job_id, [("hold_ended", {"then": decision})])
    republish_first(runner, job_id, shards, "waiting")
    return True


def land(runner: Runner, job: JobRecord) -> None:
    """See ``Client.land``."""
    if not job.state.ended:
        if not decide(runner, job.id, "land") and not job.send_no_more:
            message = f"job {job.id} has not ended, and nothing holds it: follow it with batchpipe wait {job.id}"
            raise PermanentError(message, code="not_ended")
        return
    if not (first := list(islice(_given_up(runner.store, job), PUBLISHED_AT_ONCE))):
        message = f"job {job.id} has nothing to land: it waits for no more batches"
        raise PermanentError(message, code="nothing_to_land")
    if job.total and not Folder(job.workspace, private=True).exists(job.order_files[0]):
        message = f"the workspace of job {job.id} is no longer there: {job.workspace}"
        raise PermanentError(message, code="no_workspace")
    if _reopen(runner.store, job):  # else another caller has just asked for it
        runner.log(job.id, [("landing", {"shards": runner.store.jobs.get(job.id).open})])
        for index in first:  # the sweeps find the others
            runner.republish(job.id, index, when="overdue")


def _reopen(store: Store, job: JobRecord) -> bool:
    """Take an ended job back to running. Returns False if it is running already. Raises OutputInUse, PermanentError."""
    in_output = results_place(job).url == Folder(job.output).url  # else a later job has moved them out of there
    verdict = store.jobs.land(job.id, _given_up(store, job), in_output=in_output)
    if verdict == "output":
        raise OutputInUse(f"another job that has not ended writes to the output of job {job.id}: {job.output}")
    if verdict == "not_closed":
        message = f"the receivers of job {job.id} are still being notified; try again in a minute"
        raise PermanentError(message, code="not_notified")
    return verdict == "ok"


def _given_up(store: Store, job: JobRecord) -> Iterator[int]:
    """Indexes of the shards of an ended job with batches that may have more rows than were collected."""
    for shard in store.shards.of_job(job, fields=("batch_id", "error")):
        if shard.batch_id is not None and shard.error is not None and shard.error.code in LANDABLE:
            yield shard.index
