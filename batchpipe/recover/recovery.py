"""Find what was lost, look at the provider, write the records, and report what does not agree."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchpipe.errors import (
    BatchpipeError,
    Gone,
    JobNotFound,
    PermanentError,
    RecordUnreadable,
    Refused,
    SettingsError,
    StoreUnavailable,
)
from batchpipe.model.provider import CLOCK_SLACK_SECONDS, Batch
from batchpipe.model.records import JOB, JobRecord, ShardRecord, Stage, State, Status
from batchpipe.pipeline.manifest import MANIFEST, note_workspace, pretty
from batchpipe.pipeline.messages import Message
from batchpipe.pipeline.results import INDEX
from batchpipe.pipeline.runner import Runner
from batchpipe.recover.accounts import AccountView, Tag, cannot_list, look_into
from batchpipe.recover.discovery import FoundJob, check_folders, find_jobs, is_of_a_sandbox, redis_of
from batchpipe.recover.ownership import Owners
from batchpipe.recover.rebuild import check_files, read_records, read_submitted, rebuild, stages
from batchpipe.recover.report import GoneBatch, Orphan, OrphanFile, Rebuilt, Report, Skipped, Unread
from batchpipe.storage import Folder, check_allowed
from batchpipe.store import new_task_ids

logger = logging.getLogger(__name__)

#: How far back batches that belong to no job are searched: normally they run for a day.
ORPHAN_SECONDS = 3 * 86_400.0
#: The same for files in a dry run: by default the provider deletes our inputs after so long.
ORPHAN_FILE_SECONDS = 14 * 86_400.0

#: Batches that are older may have left the provider's list.
LISTED_SECONDS = 25 * 86_400.0

Records = tuple[JobRecord, list[ShardRecord]]


def recover(
    runner: Runner,
    folders: Sequence[str] = (),
    *,
    dry_run: bool = False,
    jobs: Collection[str] = (),
    of: Sequence[str] = (),
) -> Report:
    """Rebuild the records of unfinished jobs that this Redis does not know, and publish their work.

    ``folders`` are looked through for workspaces, beside the list in our home and the WORKSPACE setting. With
    ``dry_run`` nothing is written anywhere, and the report also tells of records and provider that do not agree.
    ``jobs``: only these. ``of``: labels of other Redis servers that are gone for good: their jobs are taken over, too
    (``any``: of all).
    Raises InvalidInput for a folder that is not there, StoreUnavailable.
    """
    check_folders(folders)
    jobs_found = find_jobs(runner.settings, folders)
    return _Recovery(runner, dry_run, jobs, Owners(runner.settings, of)).run(jobs_found)


@dataclass(frozen=True)
class _Pending:
    """A lost job that still has all of its files."""

    job: JobRecord
    shards: list[ShardRecord]
    found: FoundJob
    manifest: dict[str, Any] | None  #: if it is taken over from another Redis


class _Recovery:
    """One call of ``recover``."""

    def __init__(self, runner: Runner, dry_run: bool, jobs: Collection[str], owners: Owners) -> None:
        self._runner, self._owners = runner, owners
        self._only = frozenset(jobs)
        self._foreign: set[str] = set()  #: jobs that are left to another Redis
        self._store, self._settings = runner.store, runner.settings
        self._report = Report(dry_run=dry_run)
        self._views: dict[str, AccountView] = {}
        self._since: dict[str, float] = {}  #: how far back the lists of an account were read
        self._troubles: dict[str, BatchpipeError] = {}
        self._records: dict[str, Records | None] = {}  #: of jobs that batches belong to; None: not known

    def run(self, jobs_found: Sequence[FoundJob]) -> Report:
        pending, unprepared = self._select(jobs_found)
        self._look(pending, unprepared)
        for lost in pending:
            self._try(lost.job.id, self._rebuild, lost)
        for found in unprepared:
            self._try(found.job, self._submit_again, found)
        unknown = list(self._unknown_batches())  # the records are read after the lists
        if not self._report.dry_run:
            unknown = [batch for batch in unknown if not self._cancel_duplicate(*batch)]
        for view, batch, tag in unknown:
            known = self._report.foreign_batches if tag.job in self._foreign else self._report.orphans
            known.append(_orphan(view, batch, tag))
        if self._report.dry_run:
            self._report.gone += self._gone()
            self._report.orphan_files += self._orphan_files()
        return self._report

    def _try(self, job: str, action: Any, *args: Any) -> None:
        """What is wrong with one job does not stop the others."""
        try:
            action(*args)
        except StoreUnavailable:
            raise
        except BatchpipeError as error:
            self._skip(job, error.code, error.message)

    def _skip(self, job: str, code: str, why: str, redis: str | None = None) -> None:
        self._report.skipped.append(Skipped(job, code, why, redis))

    # -- what was lost ---------------------------------------------------------------------------------------------

    def _select(self, jobs_found: Sequence[FoundJob]) -> tuple[list[_Pending], list[FoundJob]]:
        pending: list[_Pending] = []
        unprepared: list[FoundJob] = []
        for found in jobs_found:
            if self._is_asked_for(found.job):
                self._try(found.job, self._select_one, found, pending, unprepared)
        for job in sorted(self._only - {found.job for found in jobs_found}):
            if self._store.jobs.account_of(job) is not None:
                self._skip(job, "known", "its records are there")
            else:
                self._skip(job, "not_found", "nothing of it was found: name the folder of its output")
        return pending, unprepared

    def _is_asked_for(self, job: str) -> bool:
        return not self._only or job in self._only

    def _select_one(self, found: FoundJob, pending: list[_Pending], unprepared: list[FoundJob]) -> None:
        if self._store.jobs.account_of(found.job) is not None:
            return self._skip(found.job, "known", "its records are there")
        if found.has_ended():
            return self._skip(found.job, "finished", f"it has ended: {found.output}")
        manifest = found.manifest()
        if manifest is None and 0 < found.submitted_at < self._store.now() - self._settings.ttl_seconds:
            return None  # it is long over: its folders were removed
        if is_of_a_sandbox(self._settings, manifest or found.record):
            return self._skip(found.job, "sandbox_gone", "its sandbox ended with its `run`; nothing was paid for")
        label = redis_of(manifest or {}) or found.redis
        if (elsewhere := self._owners.owned_elsewhere(label)) is not None:
            self._foreign.add(found.job)
            return self._skip(found.job, *elsewhere)
        found = replace(found, redis=label)
        if manifest is None:
            unprepared.append(found)
            return None
        job, shards = read_records(manifest, found)
        roots = self._settings.roots()
        check_allowed(job.output, roots, "output")
        check_allowed(job.workspace, roots, "workspace")
        if (owner := found.output_owner()) not in (None, job.id):
            raise PermanentError(f"its output {job.output} is that of job {owner} now", code="output_taken")
        if found.output_owner() is None and INDEX in Folder(job.workspace, private=True).names():
            # merge writes it last: that output was moved away later
            return self._skip(job.id, "finished", "it has ended: its results were written")
        check_files(job, shards)
        pending.append(_Pending(job, shards, found, None if self._owners.is_ours(label) else manifest))
        return None

    def _submit_again(self, found: FoundJob) -> None:
        """A job that was not prepared: nothing of it was paid, and its submitted record is known."""
        batches = sum(view.has_any_of(found.job) for view in self._views.values())
        if batches:
            message = (
                f"its workspace {found.workspace} has no manifest, but the provider has {batches} batch(es) of it: "
                "bring the workspace back, and call `batchpipe recover DIR` with its place"
            )
            raise PermanentError(message, code="no_workspace")
        job = read_submitted(found)
        if job.spooled and not Folder(job.workspace, private=True).exists():
            raise PermanentError("its input, which was in its workspace, is gone: submit it again", code="not_prepared")
        if not self._view_of(job).knows_nothing_of(job.id):
            message = "it was submitted, and it is not certain that nothing of it was sent: look at the provider"
            raise PermanentError(message, code="maybe_sent")
        job = job.evolve(epoch=int(self._store.now()), task_ids=new_task_ids(1))
        if not self._report.dry_run:
            job_id, created = self._store.jobs.submit(job)
            if not created:
                return self._skip(job.id, "known", f"job {job_id} has its key now")
            self._note_taken(job, found)
            self._runner.log(job.id, [("recovered", {"round": 0, "shards": {}})])
            self._runner.publish(Message(job.id, JOB, job.epoch, job.stage, job.task_ids, job.queue))
        self._report.rebuilt.append(Rebuilt(job.id, job.output, job.queue, job.input_here, 0, {}))
        return None

    # -- the provider ----------------------------------------------------------------------------------------------

    def _look(self, pending: Sequence[_Pending], unprepared: Sequence[FoundJob]) -> None:
        """Read the lists of every account that may have something of ours."""
        horizon = self._store.now() - (ORPHAN_FILE_SECONDS if self._report.dry_run else ORPHAN_SECONDS)
        for found in unprepared:  # its account is not known
            horizon = min(horizon, found.submitted_at - CLOCK_SLACK_SECONDS if found.submitted_at else horizon)
        self._since = dict.fromkeys(self._own_accounts(), horizon)
        for lost in pending:
            name = lost.job.account.lower()
            self._since[name] = min(self._since.get(name, horizon), lost.job.created_at - CLOCK_SLACK_SECONDS)
        needed = {lost.job.account.lower() for lost in pending}
        for name, start in self._since.items():
            try:
                account = self._settings.account(name)
                self._views[name] = look_into(self._runner.apis(name), name, account, start)
            except BatchpipeError as error:
                self._troubles[name] = error
                if name not in needed:
                    self._report.unread.append(Unread(name, error.code, error.message))

    def _own_accounts(self) -> list[str]:
        names = {*self._settings.accounts, "default"}
        try:
            self._settings.account("default")
        except SettingsError:
            names -= {"default"} - self._settings.accounts.keys()
        return sorted(names)

    def _view_of(self, job: JobRecord) -> AccountView:
        """Raises PermanentError, which says what to do, if its account could not be read."""
        name = job.account.lower()
        if name in self._views:
            return self._views[name]
        error = self._troubles.get(name) or SettingsError(f"account {job.account!r} is not in the settings")
        if isinstance(error, SettingsError):
            raise error
        if cannot_list(error):
            message = (
                f"the provider of account {job.account!r} cannot list batches ({error}), so nobody can know what was "
                "paid for: look there by hand before you submit it again"
            )
            raise PermanentError(message, code="cannot_list")
        message = f"account {job.account!r} could not be looked into: {error}; call recover again later"
        raise PermanentError(message, code="account_unread")

    # -- records ---------------------------------------------------------------------------------------------------

    def _rebuild(self, lost: _Pending) -> None:
        job, shards = rebuild(lost.job, lost.shards, self._view_of(lost.job), self._store.now())
        self._check_age(job, shards)
        if self._report.dry_run:
            self._records[job.id] = job, shards
        else:
            self._sign(lost)
            verdict, owner = self._store.jobs.restore(job, shards)
            if verdict == "known":
                return self._skip(job.id, "known", "somebody else has just rebuilt it")
            if verdict == "output":
                message = (
                    f"its output {job.output} belongs to job {owner}, which is not closed: wait for it, or cancel it"
                )
                raise PermanentError(message, code="output_in_use")
            self._note_taken(job, lost.found)
            self._runner.log(job.id, [("recovered", {"round": job.round, "shards": stages(shards)})])
            self._publish(job, shards)
        self._report.rebuilt.append(Rebuilt(job.id, job.output, job.queue, job.input_here, job.round, stages(shards)))
        return None

    def _sign(self, lost: _Pending) -> None:
        """Put our label into the manifest of a job that is taken over, before a worker may write it."""
        if lost.manifest is None:
            return
        signed = {**lost.manifest, "redis": self._owners.label, "taken": [*lost.found.taken, lost.found.redis]}
        with Folder(lost.job.workspace, private=True).writer(MANIFEST) as file:
            file.write(pretty(signed))

    def _note_taken(self, job: JobRecord, found: FoundJob) -> None:
        """Note the owner, in case the Redis that it comes from, or ours, is emptied later."""
        if found.redis is not None and not self._owners.is_ours(found.redis):
            note_workspace(self._settings, job, taken=[found.redis])

    def _check_age(self, job: JobRecord, shards: Sequence[ShardRecord]) -> None:
        """Raises PermanentError for an old job if a shard has no batch in the list: old batches disappear from it."""
        old = self._store.now() - job.created_at > LISTED_SECONDS
        if old and any(shard.batch_id is None and shard.stage != Stage.COLLECTED for shard in shards):
            message = "it is so old that the provider may no longer list all its batches: its rows may be paid for"
            raise PermanentError(message, code="too_old")

    def _publish(self, job: JobRecord, shards: Sequence[ShardRecord]) -> None:
        """Everything is already due: the sweep finds what is not published here."""
        for shard in shards:
            if shard.stage != Stage.COLLECTED:
                self._runner.republish(job.id, shard.index)

    def _records_of(self, job_id: str) -> Records | None:
        """The job's records in Redis (or, in a dry run, those that would be rebuilt)."""
        if job_id not in self._records:
            try:
                job = self._store.jobs.get(job_id)
                self._records[job_id] = job, list(self._store.shards.of_job(job))
            except (JobNotFound, RecordUnreadable):
                self._records[job_id] = None
        return self._records[job_id]

    def _shard(self, tag: Tag) -> ShardRecord | None:
        records = self._records_of(tag.job)
        shards = records[1] if records else []
        if tag.shard < len(shards) and shards[tag.shard].index == tag.shard:  # the usual case, in long lists
            return shards[tag.shard]
        return next((shard for shard in shards if shard.index == tag.shard), None)

    # -- what does not fit -----------------------------------------------------------------------------------------

    def _unknown_batches(self) -> Iterator[tuple[AccountView, Batch, Tag]]:
        """Running batches of ours that no record knows, or is about to know."""
        for view in self._views.values():
            for batch_id, tag in view.tags.items():
                if not self._is_asked_for(tag.job):
                    continue
                batch = view.batches[batch_id]
                if batch.status in Status.FINAL or batch.status == "cancelling":
                    continue
                shard = self._shard(tag)
                if shard is None or not _explains(shard, batch_id, tag):
                    yield view, batch, tag

    def _cancel_duplicate(self, view: AccountView, batch: Batch, tag: Tag) -> bool:
        """Cancel a running batch if another batch has, or will have, the same rows: one of the two is too many."""
        records, shard = self._records_of(tag.job), self._shard(tag)
        if records is None or shard is None:
            return False
        if shard.batch_id is None and shard.stage != Stage.COLLECTED and not State(records[0].stage).ended:
            return False
        logger.error("batch %s is cancelled: the rows of %s/%s have another", batch.id, tag.job, tag.shard)
        try:
            self._runner.apis(view.name).cancel_batch(batch.id)
        except BatchpipeError as error:
            logger.error("batch %s could not be cancelled: %s", batch.id, error)
            return isinstance(error, Refused)  # it has just ended
        self._runner.log(tag.job, [("duplicate_batch_cancelled", {"batch_id": batch.id})], shard=tag.shard)
        self._report.cancelled.append(_orphan(view, batch, tag))
        return True

    def _gone(self) -> Iterator[GoneBatch]:
        """Batches of unfinished shards that the provider no longer knows."""
        for job in [*self._jobs(State.RUNNING), *self._jobs(State.CANCELLING)]:
            view = self._views.get(job.account.lower())
            for shard in (
                self._store.shards.of_job(job, bad="show") if view is not None and self._is_asked_for(job.id) else ()
            ):
                if shard.batch_id is None or shard.stage not in (Stage.CREATED, Stage.ENDED):
                    continue
                if view is not None and shard.batch_id not in view.batches and self._is_gone(view, shard.batch_id):
                    yield GoneBatch(view.name, shard.batch_id, job.id, shard.index)

    def _jobs(self, state: State) -> list[JobRecord]:
        return self._store.jobs.newest(state=state, limit=1_000_000)

    def _is_gone(self, view: AccountView, batch_id: str) -> bool:
        try:
            self._runner.apis(view.name).retrieve(batch_id)
        except Gone:
            return True
        except BatchpipeError as error:
            logger.warning("batch %s could not be read: %s", batch_id, error)
        return False

    def _orphan_files(self) -> Iterator[OrphanFile]:
        """Input files that no batch was made from, of jobs that have ended or have left nothing else."""
        for view in self._views.values():
            used, since = {batch.input_file_id for batch in view.batches.values()}, self._since[view.name]
            for file in view.files or ():
                tag = view.file_tags.get(file.id)
                if tag is None or file.id in used or (file.created_at or since) < since:
                    continue  # the batches of older files are not in the list
                if tag.job in self._foreign or not self._is_asked_for(tag.job):
                    continue
                records = self._records_of(tag.job)
                if records is None or State(records[0].stage).ended:
                    yield OrphanFile(view.name, file.id, file.name or "", tag.job)


def _explains(shard: ShardRecord, batch_id: str, tag: Tag) -> bool:
    """Whether the record names this batch, or has a call without an answer that may have made it."""
    if batch_id == shard.batch_id or batch_id in shard.spent:
        return True
    awaited = shard.batch_id is None and shard.intent_at is not None and shard.stage != Stage.COLLECTED
    return awaited and tag.try_ == shard.try_


def _orphan(view: AccountView, batch: Batch, tag: Tag) -> Orphan:
    return Orphan(view.name, batch.id, tag.job, tag.shard, batch.status)
