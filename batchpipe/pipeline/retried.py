"""A job and its retries as one: its result files are written anew when a retry has ended, with the rows of both.

The job's own files are kept beside them, under ``OWN``: they are what ``--no-retries`` shows, and what everything is
made of, so that writing twice, or a crash in between, changes nothing. A retry owns the outputs of the jobs that it
retries until it is closed, so no other job can take them meanwhile.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator

from batchpipe.config.settings import Settings
from batchpipe.errors import InvalidInput, JobNotFound, PermanentError
from batchpipe.model.answers import OutcomeState
from batchpipe.model.records import JobRecord, ShardRecord
from batchpipe.model.views import JOB_FILE, SHOWN, json_of_job
from batchpipe.pipeline.job_results import OWN, JobResults, own_files
from batchpipe.pipeline.manifest import RESULT_FILES, read_owner, results_place
from batchpipe.pipeline.results import ERRORS, OUTPUT
from batchpipe.pipeline.runner import Runner
from batchpipe.storage import Checkpoint, Folder, place_name
from batchpipe.store import JobLease, Store

logger = logging.getLogger(__name__)

#: Retries of retries that are followed, either way.
MOST_DEEP = 20


def results_of(job: JobRecord, store: Store, settings: Settings, *, model: object = None, deep: int = 0) -> JobResults:
    """The results of a job, and those of its retries as far as they have ended and are there. Raises PermanentError,
    StorageTrouble.
    """
    place = results_place(job, settings.roots())
    found = [] if deep >= MOST_DEEP else list(_retries(job, store, settings, deep))
    return JobResults(job, settings, own_files(job, place), model=model, retries=found)


def _retries(job: JobRecord, store: Store, settings: Settings, deep: int) -> Iterator[JobResults]:
    for job_id in job.retries:
        try:
            retry = store.jobs.get(job_id)
            if retry.closed or (retry.state.ended and retry.results):
                yield results_of(retry, store, settings, deep=deep + 1)
        except (JobNotFound, PermanentError):  # its records have expired, or its results were moved away
            continue


class Joining:
    """Joins the results of an ended retry with those of the jobs that it retries."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def join(self, lease: JobLease) -> None:
        """Write the files of each job that this one retries, as far as it owns their output; its own, if it has been
        landed after it was retried. Raises StorageTrouble.
        """
        if lease.job.retries and lease.job.results == lease.job.output:
            self._join_into(lease, self._runner.store.jobs.get(lease.job.id))
        parent, deep = lease.job.retry_of, 0
        while parent and deep < MOST_DEEP:
            try:
                job = self._runner.store.jobs.get(parent)
            except JobNotFound:
                return
            if place_name(job.output) in lease.job.owns[1:] and job.results == job.output:
                self._join_into(lease, job)
            parent, deep = job.retry_of, deep + 1

    def _join_into(self, lease: JobLease, job: JobRecord) -> None:
        settings = self._runner.settings
        output = Folder(job.output, roots=settings.roots())
        try:
            owner = read_owner(output)
            if owner is None or owner.id != job.id:
                raise InvalidInput(f"{job.output} has the results of another job now")
            keep_own(job, output)
            results = results_of(job, self._runner.store, settings)
            counts = _write(results, output, lease.check)
            results.write_tables(lease.check, output)
        except (InvalidInput, PermanentError) as error:
            fields = {"retry_of": job.id, "message": error.message}
            self._runner.log(lease.job.id, [("retry_not_joined", fields)], level=logging.WARNING)
            return
        self._runner.store.jobs.note_retried(job.id, counts)
        joined = job.evolve(retried=counts)
        with output.writer(JOB_FILE) as file:
            file.writelines(json_of_job(joined, lambda: self._shards(joined)))
        self._runner.log(job.id, [("retry_joined", {"retry": lease.job.id, **counts})])

    def _shards(self, job: JobRecord) -> Iterator[ShardRecord]:
        return self._runner.store.shards.of_job(job, fields=SHOWN, bad="show")


def keep_own(job: JobRecord, output: Folder) -> None:
    """Give the job's own result files a second name, once: those that others read are written anew."""
    own = own_files(job, output)
    if own is not output:
        return
    for name in RESULT_FILES:  # the errors last: their name says that both are there
        output.copy(name, f"{OWN}/{job.id}/{name}")


def put_back_own(job: JobRecord, output: Folder) -> None:
    """Before a job is merged again, after a landing: its results are its own files again. Repeated, it does no harm."""
    for place in (output, Folder(job.output)):
        if not place.exists(f"{OWN}/{job.id}/{ERRORS}"):
            continue
        for name in RESULT_FILES if place is output else ():  # else they were moved, and are written anew
            place.copy(f"{OWN}/{job.id}/{name}", name)
        place.remove(f"{OWN}/{job.id}")


def _write(results: JobResults, output: Folder, check: Callable[[], None]) -> dict[str, int]:
    """Both files, each complete when it has its name. Returns the rows of each outcome."""
    counts, pace = Counter[str](), Checkpoint(check)
    drafts = output.draft(OUTPUT), output.draft(ERRORS)
    try:
        for state, line in results.lines():
            counts[state.value] += 1
            drafts[state is not OutcomeState.OK].write(line)
            pace(line)
        for draft in drafts:
            check()
            draft.commit()
    finally:
        for draft in drafts:
            draft.discard()
    return {state.value: counts[state.value] for state in OutcomeState}
