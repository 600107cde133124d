"""Publishing many shards again: the caller does a few and waits for that; sweeps do the others, a page at a time.

A job may have 100,000 shards and an account 10,000 waiting jobs, and the caller may be serving a web request.
"""

from __future__ import annotations

from typing import NamedTuple

from batchpipe.model.records import JOB
from batchpipe.model.refusals import FOR_A_PERSON
from batchpipe.pipeline.overdue import republish_or_set_aside
from batchpipe.pipeline.runner import Runner
from batchpipe.store import When

#: Shards that the caller publishes again itself, and waits for: a few milliseconds each.
PUBLISHED_AT_ONCE = 20
#: Shards that the caller looks at to find some that wait for a person.
LOOKED_AT_ONCE = 250
#: Shards that a sweep publishes again in one go.
_PAGE = 200


class Resumed(NamedTuple):
    """The result of resuming an account."""

    paused: bool  #: whether it was paused
    republished: int  #: shards that go on at once
    left: int  #: jobs with more shards, which the sweeps publish again


def republish_first(runner: Runner, job_id: str, shards: int, when: When) -> list[str]:
    """The job itself and its first shards. Returns the void task ids."""
    void = list[str]()
    for index in (JOB, *range(min(shards, PUBLISHED_AT_ONCE))):
        void += runner.republish(job_id, index, when=when) or []
    return void


def republish_job(runner: Runner, job_id: str) -> None:
    """Publish all open work of a job again, for a caller who knows that its worker is gone. Raises JobNotFound."""
    job = runner.store.jobs.get(job_id)
    if job.shards > PUBLISHED_AT_ONCE:  # first, so that sweeps do the others if the caller is killed
        runner.store.due.leave_to_republish({job.id: PUBLISHED_AT_ONCE}, "always")
    republish_first(runner, job.id, job.shards, "always")


def resume_account(runner: Runner, account: str) -> Resumed:
    """End an account's pause: all of its waiting shards go on. Without a pause, those that wait for a person do."""
    paused, republished, looked, left = runner.store.accounts.resume(account), 0, 0, 0
    for page in runner.store.jobs.open_of(account):
        rest = dict[str, int]()
        for job_id, shards in page.items():
            first = 0
            while first < shards and looked < LOOKED_AT_ONCE and republished < PUBLISHED_AT_ONCE:
                last = min(shards, first + PUBLISHED_AT_ONCE - republished, first + LOOKED_AT_ONCE - looked)
                republished += _republish_waiting(runner, job_id, range(first, last), anything=paused)
                looked, first = looked + last - first, last
            if first < shards:
                rest[job_id] = first
        if rest:
            runner.store.due.leave_to_republish(rest, "waiting" if paused else "person")
        left += len(rest)
    return Resumed(paused, republished, left)


def republish_rest(runner: Runner, limit: int) -> None:
    """Publish the shards again that a cancel, a resume or the end of a hold has left, so many at most."""
    while limit > 0 and (found := runner.store.due.take_to_republish(min(limit, _PAGE))) is not None:
        indexes = range(found.first, found.last)
        if found.when == "person":
            _republish_waiting(runner, found.job, indexes, anything=False)
        else:
            for index in indexes:
                republish_or_set_aside(runner, found.job, index, "waiting" if found.when == "waiting" else "always")
        limit -= len(indexes)


def _republish_waiting(runner: Runner, job_id: str, indexes: range, *, anything: bool) -> int:
    """Publish those again that wait for their time; without ``anything`` only those that wait for a person."""
    republished = 0
    for shard in runner.store.shards.at([(job_id, index) for index in indexes]):
        if shard is not None and (anything or (shard.trouble is not None and shard.trouble.code in FOR_A_PERSON)):
            republished += republish_or_set_aside(runner, job_id, shard.index, "waiting")
    return republished
