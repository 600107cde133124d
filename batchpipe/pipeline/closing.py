"""What a job that has ended still needs before it is closed: job.json, a clean workspace, its receivers notified, its
files at the provider deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from batchpipe.config.limits import out_of_time
from batchpipe.errors import InvalidInput, LeaseLost, RecordUnreadable, StorageTrouble, StoreUnavailable, TransientError
from batchpipe.model.records import MAX_NOTIFY_ATTEMPTS, JobRecord, ShardRecord, State
from batchpipe.model.views import SHOWN, Moment, json_of_job
from batchpipe.pipeline.manifest import workspace_of
from batchpipe.pipeline.output_owner import Outputs
from batchpipe.pipeline.reading import budgeted, page_reads
from batchpipe.pipeline.reason_samples import read_samples
from batchpipe.pipeline.retried import Joining
from batchpipe.pipeline.runner import Runner, words
from batchpipe.pipeline.steps.cleanup import delete_files, has_files
from batchpipe.pipeline.steps.merge import clean_up
from batchpipe.pipeline.steps.salvage import salvaged_file
from batchpipe.pipeline.workspace_cleanup import remove_leftovers
from batchpipe.store import JobLease

logger = logging.getLogger(__name__)

#: How often deleting the job's files at the provider is postponed before they are left to expire.
MAX_CLEANUP_ATTEMPTS = 5


class NotDelivered(TransientError):
    """A site's receiver ``raised``, or this process has not loaded it."""

    code = "not_delivered"

    def __init__(self, message: str, *, raised: bool) -> None:
        super().__init__(message)
        self.raised = raised


class Closing:
    """Closes the job of a turn; ``notify`` sends its ``on_done`` and calls its receivers, at least once."""

    def __init__(self, runner: Runner, outputs: Outputs, notify: Callable[[JobRecord], None]) -> None:
        self._runner, self._outputs, self._notify = runner, outputs, notify

    def close(self, lease: JobLease, state: State) -> None:
        """Write job.json, clean up, notify the user: at least once, in an order that survives a crash at any point."""
        job = lease.job
        if not job.notified:
            try:
                self._write_job_file(lease, job)
                self._clear(job, state, lease)
            except StorageTrouble as error:  # the results are there; callers that wait for them must not wait for ever
                if error.passes and not self._outputs.is_late(job.ended_at):
                    raise
                logger.warning("files left in %s: %s", job.workspace, error, extra={"event": "workspace_left"})
                self._runner.log(job.id, [("files_left", {"message": error.message})], level=logging.WARNING)
            self._join(lease)
            self._runner.notices.job_ended(job)
            self._notify_receivers(job, lease)
            if self._deletes_files(lease):  # trouble with that notifies nobody again
                self._runner.store.leases.save(lease, {"notified": True})
        self._delete_files(job, lease)
        self._runner.store.leases.close_job(lease)

    def _clear(self, job: JobRecord, state: State, lease: JobLease) -> None:
        workspace = workspace_of(job, self._runner.settings)
        if workspace.is_local:
            workspace.remove("downloads")  # downloads that were broken off and never continued
        if state is State.SUCCEEDED and not self._runner.settings.keep_workspace:
            clean_up(job, workspace)
            return
        shards = self._runner.store.shards.of_job(job) if job.shards else ()
        try:
            names = {name for one in shards for name in (one.file, one.collected_file, salvaged_file(one)) if name}
        except RecordUnreadable:  # we cannot tell which files belong to it: all of them stay
            return
        remove_leftovers(workspace, {*job.order_files, *names}, lease.check)

    def _join(self, lease: JobLease) -> None:
        """Show the rows of a retry in the results of the job that it retries, too."""
        if not lease.job.retry_of and not lease.job.retries:
            return
        try:
            Joining(self._runner).join(lease)
        except StorageTrouble as error:
            if error.passes and not self._outputs.is_late(lease.job.ended_at):
                raise
            self._runner.log(lease.job.id, [("retry_not_joined", {"message": error.message})], level=logging.WARNING)

    def _notify_receivers(self, job: JobRecord, lease: JobLease) -> None:
        """Raises TransientError; but receivers that always fail, or are never loaded, do not block the job for ever."""
        try:
            self._notify(job)
        except NotDelivered as error:
            self._runner.store.leases.save(
                lease,
                {"notify_attempts": job.notify_attempts + 1, "receiver_errors": job.receiver_errors + error.raised},
            )
            if job.notify_attempts < MAX_NOTIFY_ATTEMPTS:
                raise
            level = logging.ERROR if error.raised else logging.WARNING
            logger.log(
                level,
                "no receiver is notified of the end of job %s: %s",
                job.id,
                error,
                extra={"event": "not_notified"},
            )
            self._runner.log(job.id, [("not_notified", {"message": error.message})])

    def _deletes_files(self, lease: JobLease) -> bool:
        """Whether there may be files to delete at the provider, as far as that is known of a few shards."""
        which, shards = self._runner.settings.delete_files, lease.shards
        return which != "none" and (shards is None or has_files(shards, which))

    def _delete_files(self, job: JobRecord, lease: JobLease) -> None:
        """Delete files at the provider that are no longer needed. Raises TransientError, a limited number of times."""
        if not job.shards:
            return
        try:
            runner, which = self._runner, self._runner.settings.delete_files
            shards = runner.store.shards.of_job(job) if lease.shards is None else lease.shards
            reads = page_reads(runner.store, runner.settings, job.account, runner.sleep)
            deleted = delete_files(job, shards, budgeted(runner.apis(job.account), reads), which, check=lease.check)
        except StoreUnavailable:
            raise
        except TransientError as error:
            if job.cleanup_attempts < MAX_CLEANUP_ATTEMPTS:
                self._runner.store.leases.save(lease, {"cleanup_attempts": job.cleanup_attempts + 1})
                raise
            self._runner.log(job.id, [("files_left", {"message": error.message})])
        except LeaseLost:
            raise
        except out_of_time():
            raise
        except Exception as error:  # no error may keep an ended job open, and its output locked, for ever
            self._runner.log(job.id, [("files_left", {"message": words(error)})])
        else:
            if deleted:
                self._runner.log(job.id, [("files_deleted", {"files": deleted})])

    def _write_job_file(self, lease: JobLease, job: JobRecord) -> None:
        try:
            moment = Moment(samples=read_samples(job, roots=tuple(self._runner.settings.roots())))
            self._outputs.describe(lease, job, lambda: json_of_job(job, self._shown(lease), moment))
        except (InvalidInput, StorageTrouble) as error:  # the output cannot be written, but Redis knows the end
            if isinstance(error, StorageTrouble) and error.passes and not self._outputs.is_late(job.ended_at):
                raise
            logger.warning("job.json not written: %s", error, extra={"event": "job_file"})

    def _shown(self, lease: JobLease) -> Callable[[], Iterator[ShardRecord]]:
        if (known := lease.shards) is not None:
            return lambda: iter(known)
        return lambda: self._runner.store.shards.of_job(lease.job, fields=SHOWN, bad="show")
