"""Turns of the job itself: prepare at its beginning, merge and notifications at its end."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Unpack, cast

from batchpipe.config.limits import turn_deadline
from batchpipe.config.settings import Settings
from batchpipe.errors import (
    FILE_MISSING,
    WORKSPACE_GONE,
    BatchpipeError,
    InvalidInput,
    LeaseLost,
    OutputInUse,
    SettingsError,
    StorageTrouble,
    StoreUnavailable,
    TransientError,
)
from batchpipe.model.provider import Provider
from batchpipe.model.reasons import final_ones
from batchpipe.model.records import JOB, LONGEST_PAUSE, JobRecord, Problem, ShardRecord, Stage, State
from batchpipe.model.retry import JOB_TROUBLE, UNFORESEEN
from batchpipe.model.steps import JOB_STEPS, SHARD_STEPS, Step
from batchpipe.model.views import EARLIER
from batchpipe.pipeline.account_limits import bounds_of, model_bytes, within_limits
from batchpipe.pipeline.closing import Closing
from batchpipe.pipeline.data_rows import SUBMIT
from batchpipe.pipeline.manifest import (
    MANIFEST,
    input_rules,
    manifest,
    note_workspace,
    planned_orders,
    workspace_of,
)
from batchpipe.pipeline.merging import Merging
from batchpipe.pipeline.messages import Done, Message, Next, Publish, Retry, denied, lost_lease
from batchpipe.pipeline.output_owner import Outputs
from batchpipe.pipeline.recipes import read_recipe
from batchpipe.pipeline.room import room_for
from batchpipe.pipeline.runner import (
    CANCELLING,
    MAX_LOST,
    MAX_OVERRUNS,
    MAX_TRIES,
    Runner,
    Shared,
    check_cancel,
    foreseen,
    numbers,
    words,
)
from batchpipe.pipeline.sharding import Prepared
from batchpipe.pipeline.slots import is_small
from batchpipe.pipeline.steps.merge import LOOKED_AT, Overview
from batchpipe.pipeline.steps.next_round import SENT, next_round
from batchpipe.pipeline.steps.prepare import prepare
from batchpipe.pipeline.workspace_cleanup import remove_files_of_killed_turns, token_of
from batchpipe.storage import Folder, check_allowed
from batchpipe.store import AT_ONCE, ClaimDenied, JobLease, Lease, Store, new_task_ids
from batchpipe.store.redis_label import label_of
from batchpipe.telemetry.counters import reason_of
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: How long a job waits for a worker that can read its input, and for an input or folder that cannot be reached.
INPUT_WAIT_SECONDS = 3_600.0

#: Codes of trouble with inputs, not with our own files.
_OF_INPUT = ("input_missing", "input_unreachable", "input_changed", "transfer_timeout")

#: The fields that are read of shards that were just planned.
_OF_PLANNED = ("round", "epoch", "task_ids", "bytes", "rows")


class JobRunner(Runner):
    """Turns of jobs. ``notify`` sends a job's ``on_done`` and signals at least once."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        apis: Callable[[str], Provider],
        publish: Publish,
        notify: Callable[[JobRecord], None],
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(settings, store, apis, publish, **shared)
        self._outputs = Outputs(settings, store)
        self._merging = Merging(self, self._outputs)
        self._closing = Closing(self, self._outputs, notify)

    def run(self, name: str, job_id: str, index: int, epoch: int) -> Next:
        """Handle one message; ``index`` is ``JOB``. Raises only StoreUnavailable (Redis is away: try again later)."""
        step = JOB_STEPS[name]
        with about(job=job_id):
            return self.counted([step], job_id, JOB, lambda: self._run(step, job_id, epoch))

    def _run(self, step: Step, job_id: str, epoch: int) -> Next:
        ahead = lease = cast("Lease | ClaimDenied | None", self.ahead.take(job_id, JOB, epoch, step))
        if lease is None:
            deadline = turn_deadline(self.settings, step)
            lease = self.store.leases.claim_job(job_id, epoch, step.stages, deadline=deadline, enter=step.enters)
        if isinstance(lease, ClaimDenied):
            return self.gone(job_id) if lease.why == "gone" else denied(lease)
        assert isinstance(lease, JobLease)
        with lease, about(account=lease.job.account):
            try:
                self.note_overrun(lease, step)
                return Done({"prepare": self._prepare, "merge": self._merge}[step.name](lease))
            except LeaseLost:
                return lost_lease(ahead is not None)
            except StoreUnavailable:
                raise
            except Exception as error:
                return self._trouble(lease, foreseen(error, step))

    # -- prepare ---------------------------------------------------------------------------------------------------

    def _prepare(self, lease: JobLease) -> str:
        job = lease.job
        if job.overran >= MAX_OVERRUNS:
            message = (
                f"could not be prepared: {job.overran} times it made no progress, in the end for hours; "
                f"it may need {JOB_STEPS['prepare'].remedy}"
            )
            return self._refuse(lease, Problem(code="prepare_failed", message=message))
        if lease.job.tries > MAX_TRIES or lease.job.lost > MAX_LOST:
            reason = job.trouble.message if job.trouble else "its worker vanished again and again"
            return self._refuse(lease, Problem(code="prepare_failed", message=f"could not be prepared: {reason}"))
        if job.aside:  # begun by a turn that died: the earlier job's files stay together, however this job goes on
            self._outputs.put_aside(lease)
        if job.cancel:
            return self._plan(lease, Prepared([], 0, None))
        try:
            self._check_places(lease)
            workspace = workspace_of(job, self.settings)
            note_workspace(self.settings, job)
            _clean_up_after_killed_turns(lease, workspace, planned_orders(workspace))
            prepared = prepare(
                within_limits(job, self.settings),
                workspace,
                lease.token,
                check=lambda: check_cancel(lease),
                output=self._outputs.folder(job, job.output),
                rules=input_rules(self.settings),
                bounds=bounds_of(self.settings, job.account, self.store),
                recipe=read_recipe(job, workspace),
            )
            self._announce(lease, workspace, prepared)
            _clean_up_after_killed_turns(lease, workspace, [])
        except (InvalidInput, OutputInUse) as error:
            return self._refuse(lease, Problem(code=error.code, message=error.message))
        except SettingsError as error:  # a package for its storage is missing on this host
            if job.input_here:
                return self._refuse(lease, Problem(code=error.code, message=error.message))
            raise
        except StorageTrouble as error:
            if self._is_over(job, error):
                code = "invalid_input" if error.code in _OF_INPUT else error.code
                return self._refuse(lease, Problem(code=code, message=error.message))
            raise
        return self._plan(lease, prepared)

    def _check_places(self, lease: JobLease) -> None:
        """Raises InvalidInput for places that may not be used, OutputInUse for another job's output."""
        job, roots = lease.job, self.settings.roots()
        for place in (job.inputs or [job.input]) if not job.spooled else ():
            check_allowed(place, roots, "input")
        check_allowed(job.output, roots, "output")
        self._outputs.check(lease)

    def _is_over(self, job: JobRecord, error: StorageTrouble) -> bool:
        """Whether trouble before anything was sent has been waited for long enough. A full disk needs a person: the job
        waits for that until it is cancelled.
        """
        if not error.passes:
            return True
        if error.code == "input_missing":
            return job.input_here or self.store.now() - job.created_at > INPUT_WAIT_SECONDS
        full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        begun = job.preparing_at if job.preparing_at is not None else job.created_at
        return not full and self.store.now() - begun > INPUT_WAIT_SECONDS

    def _announce(self, lease: JobLease, workspace: Folder, prepared: Prepared) -> None:
        """Write to the output which job owns it, and to the workspace what recover needs if Redis loses everything."""
        job = lease.job.evolve(endpoint=prepared.endpoint, rows_file=prepared.rows_file or lease.job.rows_file)
        if (owner := self._outputs.take(lease, prepared.rows)) is not None:
            self.log(lease.job.id, [("earlier_results_kept", {"of": owner, "in": f"{EARLIER}/{owner}"})])
        self._write_manifest(job, [], prepared, workspace)

    def _write_manifest(
        self, job: JobRecord, done: Iterable[ShardRecord], prepared: Prepared, workspace: Folder
    ) -> None:
        with workspace.writer(MANIFEST) as file:
            file.writelines(manifest(job, done, prepared, label_of(self.settings)))

    def _plan(self, lease: JobLease, prepared: Prepared) -> str:
        """Returns in words what happened to the job; so do `_refuse`, `_merge` and `_finish`."""
        job, ids = lease.job, new_task_ids(1)
        changes = {
            "round": job.round + 1,
            "total": prepared.rows if job.total is None else job.total,
            "order_files": [*job.order_files, prepared.order_file or ""],
            "reasons": final_ones(job.reasons),  # the others are sent again
        }
        if prepared.endpoint:
            changes["endpoint"] = prepared.endpoint
        if prepared.rows_file:
            changes["rows_file"] = prepared.rows_file
        few = list(_new_shards(job, prepared)) if len(prepared.shards) <= AT_ONCE else None
        alone = few is not None and len(few) == 1 and not job.shards and is_small(few[0].bytes, few[0].rows)
        following = self.ahead.link_of(self.settings, "upload") if alone else None
        room = room_for(job, few[0], self.store, self.settings) if few and following is not None else None
        shards = _new_shards(job, prepared) if few is None else few
        planned = {"round": job.round + 1, "shards": len(prepared.shards), "rows": prepared.rows}
        count, merge_epoch = self.store.leases.plan(
            lease, changes, shards, ids, following=following, room=room, events=[("planned", planned)]
        )
        self.ahead.keep(lease.following)
        self._count_stages(job)
        if merge_epoch:
            self.publish_merge(lease, merge_epoch, ids)
            return "nothing to send"
        if job.round:
            self.counters.add("rounds")
            self.counters.add("rows_resent", prepared.rows)
        self.log(job.id, [("planned", planned)], recorded=True)
        if few is None:
            self._publish_planned(job.id, job.round + 1)
        else:
            self._publish_shards(job, job.shards + len(few), few)
        return f"planned round {job.round + 1}, shards: {count}, rows: {prepared.rows}"

    def _publish_planned(self, job_id: str, number: int) -> None:
        """Read the shards again, since there may be too many for memory; skip those that were published again since."""
        job = self.store.jobs.get(job_id)
        shards = self.store.shards.of_job(job, fields=_OF_PLANNED, bad="show")
        ours = (one for one in shards if one.round == number and one.epoch == 1 and one.stage == Stage.PLANNED)
        self._publish_shards(job, job.shards, ours)

    def _publish_shards(self, job: JobRecord, shards: int, planned: Iterable[ShardRecord]) -> None:
        """``shards``: how many the job has."""
        for shard in planned:
            small = is_small(shard.bytes, shard.rows)
            message = Message(
                *(job.id, shard.index, shard.epoch, Stage.PLANNED, shard.task_ids, job.queue),
                large=not small,
                small=small and shards == 1,
            )
            self.publish(message)

    def _refuse(self, lease: JobLease, problem: Problem) -> str:
        """The job fails before anything was sent."""
        self.log(lease.job.id, [("refused", {"code": problem.code, "message": problem.message})])
        if problem.code == "not_allowed" and lease.job.spooled:  # nothing stays in a place that is not allowed
            workspace_of(lease.job, self.settings).remove("")
        return self._finish(lease, State.FAILED, {"error": problem, "ok": 0, "failed": 0, "missing": 0, "total": 0})

    # -- merge -----------------------------------------------------------------------------------------------------

    def _merge(self, lease: JobLease) -> str:
        job = lease.job
        if State(job.stage).ended:
            self._close(lease, State(job.stage))
            return f"{job.stage}: notified"
        seen = Overview(job, self._merging.collected(lease, LOOKED_AT))
        if seen.gone:
            return self._merge_left(lease)
        try:
            return self._merge_all(lease, seen)
        except StorageTrouble as error:
            if error.code != FILE_MISSING:
                raise
            self.wait_for_workspace(lease, error)
            return self._merge_left(lease)
        except BatchpipeError as error:
            if error.code != "rows_lost" or not job.cancel or job.tries <= MAX_TRIES:
                raise
            return self._merge_left(lease)  # a person has decided to accept what there is

    def _merge_left(self, lease: JobLease) -> str:
        """Files of the workspace are gone for good: make results of what is left and what the provider still has."""
        job = lease.job
        merged = self._merging.merge_left(lease)
        gone = Problem(code=WORKSPACE_GONE, message="the order of the input is lost")
        self._merging.write_tables(lease, merged, error=gone)
        message = (
            f"files of the workspace {job.workspace} were gone: the results are in another order than the input, "
            f"{merged.ok} ok, {merged.failed} failed, and {merged.missing} missing, which may not be named"
        )
        return self._finish(
            lease, merged.state, {**merged.totals, "error": Problem(code=WORKSPACE_GONE, message=message)}
        )

    def _merge_all(self, lease: JobLease, seen: Overview) -> str:
        job, workspace = lease.job, workspace_of(lease.job, self.settings)
        if self._may_resend(job, seen) and not (job := self.held(job)).send_no_more:
            _clean_up_after_killed_turns(lease, workspace, planned_orders(workspace))
            shards = (shard for shard in self._merging.collected(lease, SENT) if shard.round == job.round)
            limited = within_limits(job, self.settings)
            prepared = next_round(
                limited,
                shards,
                workspace,
                lease.token,
                check=lambda: check_cancel(lease),
                model_bytes=model_bytes(self.store, self.settings, job.account, now=True),
                recipe=read_recipe(job, workspace),
            )
            lease.check()  # a turn that was frozen must not set the manifest back
            self._write_manifest(job, self._merging.collected(lease), prepared, workspace)
            _clean_up_after_killed_turns(lease, workspace, [])
            return self._plan(lease, prepared)
        merged = self._merging.merge_all(lease)
        self._merging.write_tables(lease, merged)
        error = None if job.cancel else merged.error(seen)
        changes = {**merged.totals, "incomplete": merged.incomplete, "error": error}
        return self._finish(lease, merged.state, changes)

    @staticmethod
    def _may_resend(job: JobRecord, seen: Overview) -> bool:
        return not (job.cancel or job.send_no_more) and job.round < job.attempts and seen.resend

    def _finish(self, lease: JobLease, state: State, changes: dict[str, Any]) -> str:
        before = lease.job
        final = self.store.leases.finish(lease, state, changes, _counts(changes))
        self._count_stages(before)
        self.counters.add("jobs_ended", account=lease.job.account, state=final.value)
        self.counters.rows("rows", lease.job.account, changes)
        if changes.get("invalid"):
            self.counters.add("rows_invalid", changes["invalid"], account=lease.job.account)
        self.log(lease.job.id, [("ended", {"state": final.value, **_counts(changes)})], recorded=True)
        self._close(lease, final)
        error = changes.get("error")
        return f"{final.value}: {error.message if error else numbers(changes)}"

    def _count_stages(self, job: JobRecord) -> None:
        """Count the seconds of the job's own stages that this turn has ended."""
        if job.stage == State.PREPARING:
            if job.preparing_at is not None:
                self.counters.add("stage_seconds", max(job.preparing_at - job.created_at, 0.0), stage="pending")
            self.count_stage(job.stage, job.preparing_at)
        elif job.stage == State.FINALIZING:
            self.count_stage(job.stage, job.finalizing_at)

    def _close(self, lease: JobLease, state: State) -> None:
        self._closing.close(lease, state)

    # -- trouble ---------------------------------------------------------------------------------------------------

    def _trouble(self, lease: JobLease, error: Exception) -> Next:
        lease.stop()
        passes = isinstance(error, TransientError | OSError)
        if not passes and not isinstance(error, SettingsError):
            logger.error("turn failed", exc_info=error, extra={"event": "turn_failed"})
        problem = Problem(code=getattr(error, "code", "internal_error"), message=words(error))
        named = getattr(error, "after", None)
        pause = JOB_TROUBLE.after(lease.job.wait) if passes else UNFORESEEN.pause(lease.job.tries)
        after = 0.0 if problem.code == CANCELLING else min(max(named or 0.0, pause), LONGEST_PAUSE)
        repeated = lease.job.trouble is not None and lease.job.trouble.message == problem.message
        try:
            news = self.store.leases.defer(lease, after, {"trouble": problem}, tries="refund" if passes else "keep")
        except LeaseLost:
            return Done()
        if not repeated:
            fields = {"message": problem.message, "seconds": after, "reason": reason_of(error)}
            waits = problem.code == "input_missing"  # after an hour a person should know
            self.log(lease.job.id, [("deferred", fields)], level=logging.WARNING if waits else logging.INFO)
        if news.republish:
            self.republish(lease.job.id, JOB)
            return Done()
        return Retry(after, problem.message, reason_of(error))


def _new_shards(job: JobRecord, prepared: Prepared) -> Iterator[ShardRecord]:
    for plan in prepared.shards:
        yield ShardRecord(
            job=job.id,
            index=plan.index,
            epoch=1,
            round=job.round + 1,
            refused_once=plan.refused_once,
            file=plan.file,
            rows=plan.rows,
            bytes=plan.bytes,
            model=plan.model,
            task_ids=new_task_ids(len(SHARD_STEPS)),
        )


def _clean_up_after_killed_turns(lease: JobLease, workspace: Folder, orders: list[str]) -> None:
    """Remove what earlier turns of this job left when they were killed. ``orders``: order files to keep, with their
    shards, besides those of the record.
    """
    kept = {lease.token, SUBMIT, *map(token_of, (*lease.job.order_files, *orders))}
    with suppress(StorageTrouble):  # leftovers do no harm
        remove_files_of_killed_turns(workspace, kept, lease.check)


def _counts(changes: dict[str, Any]) -> dict[str, Any]:
    found = {name: changes.get(name) for name in ("total", "ok", "failed", "missing")}
    return found | ({"incomplete": changes["incomplete"]} if changes.get("incomplete") else {})
