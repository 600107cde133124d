"""What ``doctor`` looks at: the Redis of a client, its open jobs and their workers. It changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from batchpipe.client.listeners import STARTING_SECONDS
from batchpipe.config.settings import Settings
from batchpipe.errors import JobNotFound, RecordUnreadable, StoreUnavailable
from batchpipe.model.records import JOB, JobRecord, Problem, ShardRecord, Stage
from batchpipe.model.views import not_notified
from batchpipe.recover import lost_jobs
from batchpipe.store import Store
from batchpipe.store.refusals import PASSING
from batchpipe.tasks.inspection import queues_of_workers

#: How many open records are read, and of how many jobs.
MOST_RECORDS, MOST_JOBS = 1_000, 200


@dataclass(frozen=True)
class OpenJob:
    """A job that is not done, and its open records: its shards, or the job itself."""

    job: JobRecord
    records: Sequence[JobRecord | ShardRecord]

    @property
    def problem(self) -> str | None:
        """Why it makes no progress just now, as `status` says it."""
        if self.job.state.ended:  # its trouble is over: only its receivers may not have been notified
            return not_notified(self.job)
        found = (record.trouble.message for record in self.records if record.trouble is not None)
        held = self.job.hold.message if self.job.hold is not None else None
        return held or next(found, None)


class Health:
    """Each method raises StoreUnavailable where Redis refuses."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings

    def server(self) -> dict[str, str]:
        """``version``, ``appendonly``, ``appendfsync``, ``maxmemory-policy``; "": the server does not tell."""
        return self._store.connection.server_facts()

    def check_writing(self) -> None:
        """Try a write that changes nothing."""
        self._store.connection.check_writing()

    def seconds_apart(self) -> float:
        """How far Redis' clock is ahead of the one of this host; negative: behind. 0 while it is known to be wrong."""
        clock = self._store.connection.clock()
        return 0.0 if clock.ahead else clock.now - self._store.connection.host_time()

    def lost_jobs(self) -> list[str]:
        """Ids of unfinished jobs that this host has submitted, and that Redis does not know."""
        return lost_jobs(self._settings, self._store)

    def open_jobs(self) -> list[OpenJob]:
        """Those with records that are due first, no more than can be read in a moment."""
        indexes: dict[str, list[int]] = {}
        for job_id, index in self._store.due.unfinished(MOST_RECORDS):
            indexes.setdefault(job_id, []).append(index)
        found = (self._open_job(job_id, at) for job_id, at in list(indexes.items())[:MOST_JOBS])
        return [job for job in found if job is not None]

    def _open_job(self, job_id: str, indexes: Sequence[int]) -> OpenJob | None:
        """None if it ended between two reads."""
        shards = self._store.shards.at([(job_id, index) for index in indexes if index != JOB])
        with suppress(JobNotFound):
            try:
                job = self._store.jobs.get(job_id)
                itself = [job] if JOB in indexes else []
            except RecordUnreadable as error:
                problem = Problem(code=error.code, message=error.message)
                job = JobRecord(id=job_id, queue=self._settings.queue, trouble=problem)
                itself = [job]
            unfinished = (shard for shard in shards if shard is not None and shard.stage != Stage.COLLECTED)
            return None if job.closed else OpenJob(job, [*itself, *unfinished])
        return None

    def by_queue(self, jobs: Sequence[JobRecord]) -> dict[str, list[JobRecord]]:
        """The jobs of each queue, except those of a `run` with a worker that may just be starting."""
        began = self._store.now() - STARTING_SECONDS
        found: dict[str, list[JobRecord]] = {}
        for job in sorted(jobs, key=lambda job: (job.input_here, job.queue)):
            if not (job.input_here and job.created_at > began):
                found.setdefault(job.queue, []).append(job)
        return found

    def workers(self, queues: Sequence[str]) -> Iterator[tuple[str, Collection[str] | None]]:
        """Each queue with the names of the workers that listen on it. If none has noted that it listens on one of the
        queues, all workers are asked, which takes a second; None, and no further queue, if the broker does not answer.
        """
        listening, answers = self._store.queues.listening(), None
        for queue in queues:
            found: Collection[str] = listening.get(queue, ())
            if not found and answers is None and (answers := queues_of_workers()) is None:
                yield queue, None
                return
            yield queue, found or (answers or {}).get(queue, ())


def is_passing(error: StoreUnavailable) -> bool:
    """Whether Redis will be ready by itself: a process that keeps running waits for that."""
    return error.code in PASSING
