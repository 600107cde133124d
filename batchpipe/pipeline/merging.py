"""Merges the collected shards of a job into its results: in its output, else, if that is used by another job by now, in
a place of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from batchpipe.errors import FILE_MISSING, WORKSPACE_GONE, InvalidInput, OutputInUse, SettingsError, StorageTrouble
from batchpipe.model.records import Problem, ShardRecord
from batchpipe.pipeline.job_results import JobResults
from batchpipe.pipeline.manifest import own_place, workspace_of
from batchpipe.pipeline.output_owner import Outputs
from batchpipe.pipeline.retried import put_back_own
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.steps.merge import MERGED, Merged, merge, merge_what_is_left
from batchpipe.pipeline.steps.salvage import salvage, salvaged_file
from batchpipe.storage import Folder
from batchpipe.store import AT_ONCE, JobLease

#: Reads the shards of a job; each call reads them again.
Shards = Callable[[], Iterable[ShardRecord]]


class Merging:
    """The results of the job of a turn."""

    def __init__(self, runner: Runner, outputs: Outputs) -> None:
        self._runner, self._outputs = runner, outputs

    def collected(self, lease: JobLease, fields: Sequence[str] = ()) -> Iterator[ShardRecord]:
        """The shards of all rounds, read again each time they are needed, for they never are all in memory; a few are
        read once, as nobody changes them while their job is merged.
        """
        if lease.job.shards <= AT_ONCE:
            if lease.shards is None:
                lease.shards = list(self._runner.store.shards.of_job(lease.job))
            yield from lease.shards
            return
        for number, shard in enumerate(self._runner.store.shards.of_job(lease.job, fields=fields)):
            if number % 1_000 == 0:
                lease.check()
            yield shard

    def merge_all(self, lease: JobLease) -> Merged:
        """All rows, in the order of the input."""
        workspace = workspace_of(lease.job, self._runner.settings)
        return self._merge_shards(lease, lambda: self.collected(lease, MERGED), workspace, merge)

    def merge_left(self, lease: JobLease) -> Merged:
        """The rows that are left in the workspace, and those that the provider still has, in any order."""
        job, workspace = lease.job, workspace_of(lease.job, self._runner.settings)
        for shard in self.collected(lease):
            self._left_of(lease, shard, workspace)  # everything is fetched before anything is written
        message = (
            "a file of its workspace is gone: it ends with the answers that are left, and those still at the provider"
        )
        fields = {"workspace": job.workspace, "message": message}
        self._runner.log(job.id, [(WORKSPACE_GONE, fields)], level=logging.ERROR)

        def left() -> Iterator[ShardRecord]:
            return (self._left_of(lease, shard, workspace) for shard in self.collected(lease))

        return self._merge_shards(lease, left, workspace, merge_what_is_left)

    def write_tables(self, lease: JobLease, merged: Merged, *, error: Problem | None = None) -> None:
        """The tables that the job was asked for, of its merged results. Where one cannot be written for want of a
        package, the job ends without it, and its log says so: the rows are there. Raises StorageTrouble.
        """
        job = lease.job.evolve(error=error)
        if not job.formats or not merged.total:
            return
        try:
            folder = self._outputs.folder(job, job.results)
            JobResults(job, self._runner.settings, folder).write_tables(lease.check)
        except SettingsError as missing:
            fields = {"message": missing.message, "formats": ", ".join(job.formats)}
            self._runner.log(job.id, [("table_not_written", fields)], level=logging.ERROR)

    def _left_of(self, lease: JobLease, shard: ShardRecord, workspace: Folder) -> ShardRecord:
        """The shard with a readable file of its rows: its own, one of what the provider still has, or none."""
        for name in (shard.collected_file, salvaged_file(shard)):
            try:
                if name:
                    workspace.size(name)
                    return shard.evolve(collected_file=name)
            except StorageTrouble as error:
                if error.code != FILE_MISSING:
                    raise
                if name == shard.collected_file:
                    self._runner.wait_for_workspace(lease, error)
        if not (shard.output_file_id or shard.error_file_id):
            return shard.evolve(collected_file=None)
        problem = Problem(code=WORKSPACE_GONE, message="its collected rows were gone")
        move = salvage(shard, workspace, self._runner.apis(lease.job.account), problem, check=lease.check)
        return shard.evolve(collected_file=move.changes["collected_file"])

    def _merge_shards(self, lease: JobLease, shards: Shards, workspace: Folder, step: Callable[..., Merged]) -> Merged:
        """Move the results to the output; if that belongs to the job no longer, to a place of its own, and say so."""
        place = self._outputs.place(lease)
        try:
            return self._merge_into(lease, shards, workspace, place, step)
        except (OutputInUse, InvalidInput, StorageTrouble) as error:
            if place != lease.job.output:
                raise
            waits = (
                isinstance(error, StorageTrouble)
                and error.passes
                and not self._outputs.is_late(lease.job.finalizing_at)
            )
            if waits or error.code == FILE_MISSING:  # a folder of the workspace
                raise
            place = own_place(lease.job)
            merged = self._merge_into(lease, shards, workspace, place, step)
            fields = {"in": place, "message": error.message}
            self._runner.log(lease.job.id, [("results_elsewhere", fields)], level=logging.WARNING)
            return merged

    def _merge_into(
        self, lease: JobLease, shards: Shards, workspace: Folder, place: str, step: Callable[..., Merged]
    ) -> Merged:
        folder = self._outputs.folder(lease.job, place)
        if lease.job.retries and place == lease.job.results:
            put_back_own(lease.job, folder)
        record_place = partial(self._outputs.record_place, lease, place)
        return step(lease.job, shards(), workspace, folder, check=lease.check, record_place=record_place)
