"""The job that a person means: a whole id, the unique beginning of one, or ``last``."""

from __future__ import annotations

from batchpipe.errors import InvalidInput, JobNotFound, RecordUnreadable
from batchpipe.model.records import JobRecord
from batchpipe.store import Store

#: What stands for the job that was created last.
LAST = "last"
#: Begins every id, and may be left out of a beginning; so many characters of the rest must be there.
BEGIN, LEAST = "job_", 4
#: Jobs that a message about an ambiguous beginning names.
MOST_NAMED = 5


def find_job(store: Store, text: str) -> JobRecord:
    """The record of that job, at the cost of a few reads however many jobs there are.

    Raises JobNotFound, InvalidInput (``ambiguous_job``) with the jobs that begin so, RecordUnreadable.
    """
    if text == LAST:
        return _last(store)
    try:
        return store.jobs.get(text)
    except JobNotFound:
        begin = text.lower().removeprefix(BEGIN)
        if not LEAST <= len(begin) <= 100 or not (begin.isascii() and begin.isalnum()):
            raise
        found = store.jobs.beginning_with(BEGIN + begin, most=MOST_NAMED + 1)
        if not found:
            raise
    if len(found) > 1:
        raise InvalidInput(_ambiguous(text, found), code="ambiguous_job")
    return store.jobs.get(found[0].id)


def _last(store: Store) -> JobRecord:
    found = store.jobs.newest(limit=1)
    if not found:
        raise JobNotFound("there is no job here, so none is the last")
    if found[0].error is not None and found[0].error.code == RecordUnreadable.code:
        raise RecordUnreadable(found[0].error.message)
    return found[0]


def _ambiguous(text: str, found: list[JobRecord]) -> str:
    named = [f"{job.id} ({job.name[:40]})" if job.name else job.id for job in found[:MOST_NAMED]]
    more = " and others" if len(found) > MOST_NAMED else ""
    return f"more than one job begins with {text}: {', '.join(named)}{more}; give more of the id"
