"""Which job owns an output: claimed in Redis under each of its names, and checked again before files are put there.

A job owns its output from its submit until it is ``closed``: also after its end, until its receivers were
notified. The job.json in the folder decides, because the folder may be reached by names that Redis does not know, and
by another Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from batchpipe.config.settings import Settings
from batchpipe.errors import InvalidInput, JobNotFound, OutputInUse
from batchpipe.model.records import JobRecord
from batchpipe.model.views import JOB_FILE, job_view
from batchpipe.pipeline.manifest import (
    RESULT_FILES,
    Owner,
    check_apart,
    check_no_results,
    check_no_workspace,
    copy_aside,
    own_place,
    pretty,
    read_owner,
    remove_copied,
)
from batchpipe.storage import Folder, check_allowed, place_name, real_place
from batchpipe.store import JobLease, Store
from batchpipe.store.jobs import output_in_use

#: A job that was refused for one of these has no output to write to.
_NO_OUTPUT = ("output_in_use", "output_unwritable", "output_foreign", "not_allowed")
#: So many ends of a job are remembered, by the sizes of their files.
_MOST_WRITTEN = 8


#: How long results wait for an output that cannot be written to.
OUTPUT_WAIT_SECONDS = 3_600.0


class Outputs:
    """What a turn of a job may do with the job's output."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def is_late(self, since: float | None) -> bool:
        """Whether an output that cannot be written to has been waited for long enough."""
        return since is not None and self._store.now() - since > OUTPUT_WAIT_SECONDS

    def folder(self, job: JobRecord, place: str) -> Folder:
        """The folder that results of the job may go to."""
        return Folder(place, private=place == own_place(job), roots=self._settings.roots())

    def _folder(self, place: str) -> Folder:
        return Folder(place, roots=self._settings.roots())

    def check(self, lease: JobLease) -> str | None:
        """Make sure that the output may be used. Returns the closed job with results there, if there is one.

        Raises OutputInUse, InvalidInput (``not_allowed``; ``output_foreign``: files that batchpipe did not write),
        StorageTrouble, LeaseLost.
        """
        job = lease.job
        if not job.spooled:
            check_apart(job.input, job.output)
        check_no_workspace(job.output, job.id, self._settings.workspace)
        self._claim(lease)
        output = self._folder(job.output)
        owner = read_owner(output)
        if owner is None:
            check_no_results(output, also=[f"output.{kind}" for kind in job.formats])
        if owner is None or owner.id == job.id:
            return None
        if not self._has_files(job, owner):
            check_no_results(output, also=[f"output.{kind}" for kind in job.formats])
        return owner.id

    def take(self, lease: JobLease, rows: int) -> str | None:
        """Move the results of a closed job out of the output, and write who owns it now. Raises as ``check``.

        Returns the id of the closed job.
        """
        owner = self.check(lease)
        if owner is not None:
            aside = {"aside": owner, "copied": False}
            self._store.leases.save(lease, aside)
            lease.job = lease.job.evolve(**aside)
            self.put_aside(lease)
        with self._folder(lease.job.output).writer(JOB_FILE) as file:
            file.write(pretty(job_view(lease.job.evolve(total=rows), [])))
        return owner

    def put_aside(self, lease: JobLease) -> None:
        """Move the earlier job's results out of the output, or what is left of them there.

        They are at both places until its record names the new one, and only then removed from the output. So a reader
        always finds them whole, and if a turn dies in between, files that were written since are not mistaken for them.
        """
        job, output = lease.job, self._folder(lease.job.output)
        with suppress(InvalidInput):  # another program has written over it
            owner = read_owner(output)
            if owner is None or owner.id != job.aside:
                return
            if not job.copied:
                place = copy_aside(output, job.aside)
                self._store.jobs.set_results(job.aside, place, real_place(place))
                self._store.leases.save(lease, {"copied": True})
            remove_copied(output, job.aside)

    def place(self, lease: JobLease) -> str:
        """Where a job's results go: its output, or the place that was decided before."""
        return lease.job.results or lease.job.output

    def record_place(self, lease: JobLease, place: str, *sizes: int) -> None:
        """Before files are put in place: check that the output is still ours, record the place. Raises as ``check``.

        ``sizes``: bytes of ``output.jsonl`` and ``errors.jsonl``, the same in every turn.
        """
        if place == lease.job.output:
            self._check_still_ours(lease, sizes)
        written = [*(known for known in lease.job.written if known != list(sizes)), list(sizes)]
        where = {"results": place, "real": real_place(place), "written": written[-_MOST_WRITTEN:]}
        self._store.leases.save(lease, where)
        lease.job = lease.job.evolve(**where)

    def _check_still_ours(self, lease: JobLease, sizes: Sequence[int]) -> None:
        job, output = lease.job, self._folder(lease.job.output)
        check_allowed(job.output, self._settings.roots(), "output")
        self._claim(lease)
        owner = read_owner(output)
        if owner is not None and owner.id != job.id:
            raise OutputInUse(f"output {job.output} is that of job {owner.id} now")
        if owner is None or job.results != job.output:
            check_no_results(output)
        else:  # a turn of ours that died has put some in place, or they are from an earlier end of this job
            ours = zip(*job.written, sizes, strict=True)
            check_no_results(output, but=dict(zip(RESULT_FILES, ours, strict=True)))
        if owner is None:
            with output.writer(JOB_FILE) as file:
                file.write(pretty(job_view(job, [])))

    def describe(self, lease: JobLease, job: JobRecord, text: Callable[[], Iterable[bytes]]) -> None:
        """Write job.json of an ended job where its results lie, and in its output if the job owns that.

        ``text`` returns its parts, from the start with each call. Raises InvalidInput if it cannot be written,
        StorageTrouble.
        """
        if job.results and job.results != job.output:
            place = self.folder(job, job.results)
            with place.writer(JOB_FILE) as file:
                file.writelines(text())
        if self._may_describe(lease, job):
            with self._folder(job.output).writer(JOB_FILE) as file:
                file.writelines(text())

    def _may_describe(self, lease: JobLease, job: JobRecord) -> bool:
        try:
            output = self._folder(job.output)
            owner = read_owner(output)
            if owner is not None:
                return owner.id == job.id
            if job.results == job.output:
                return True
            if job.results or (job.error is not None and job.error.code in _NO_OUTPUT):
                return False
            check_allowed(job.output, self._settings.roots(), "output")
            check_no_results(output)
            self._claim(lease)
        except (InvalidInput, OutputInUse):
            return False
        return True

    def _claim(self, lease: JobLease) -> None:
        """The path as this host sees it now: where its links lead, and whether its file system is case-sensitive."""
        self._store.leases.claim_output(lease, [place_name(lease.job.output)])

    def _has_files(self, job: JobRecord, owner: Owner) -> bool:
        """Whether result files in a job's output may be another job's. Raises OutputInUse if that one is not closed."""
        try:
            other = self._store.jobs.get(owner.id)
        except JobNotFound:
            if owner.ended:
                return owner.has_files
            if self._settings.is_sandbox(owner.account):
                return False  # nothing of it was paid for
            raise OutputInUse(
                f"output {job.output} has a job.json of job {owner.id}, which had not ended and is unknown here: "
                "its rows may be paid for; choose another output, or move job.json away if that job is abandoned"
            ) from None
        if not other.closed:
            raise OutputInUse(output_in_use(job.output, owner.id, other.stage))
        return place_name(job.output) in {place_name(place) for place in (other.results, other.real) if place}
