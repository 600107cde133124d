"""Turns of the job itself: prepare at its beginning, merge and notifications at its end."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from batchpipe.config.limits import REMEDIES, out_of_time, turn_deadline
from batchpipe.config.settings import Settings
from batchpipe.errors import (
    FILE_MISSING,
    WORKSPACE_GONE,
    BatchpipeError,
    InvalidInput,
    LeaseLost,
    OutputInUse,
    RecordUnreadable,
    SettingsError,
    StorageTrouble,
    StoreUnavailable,
    TransientError,
)
from batchpipe.model.records import ENDED, JOB, LONGEST_PAUSE, MAX_TELLS, JobRecord, Problem, ShardRecord, Stage, State
from batchpipe.model.views import EARLIER, SHOWN, json_of_job
from batchpipe.pipeline.leftovers import remove_dead_turns, remove_leftovers, token_of
from batchpipe.pipeline.manifest import (
    MANIFEST,
    input_rules,
    manifest,
    note_workspace,
    own_place,
    planned_orders,
    workspace_of,
)
from batchpipe.pipeline.output import Outputs
from batchpipe.pipeline.runner import (
    CANCELLING,
    FIRST_PAUSE,
    LINKS,
    LONGEST_BACKOFF,
    MAX_LOST,
    MAX_OVERRUNS,
    MAX_TRIES,
    Done,
    Message,
    Next,
    Publish,
    Retry,
    Runner,
    WaitingIn,
    check_cancel,
    foreseen,
    numbers,
    refused,
    words,
)
from batchpipe.pipeline.sharding import Bounds, Prepared
from batchpipe.pipeline.slots import is_small
from batchpipe.pipeline.steps.cleanup import tidy
from batchpipe.pipeline.steps.merge import LOOKED_AT, MERGED, Merged, Overview, clean_up, merge, merge_what_is_left
from batchpipe.pipeline.steps.next_round import SENT, resend
from batchpipe.pipeline.steps.prepare import prepare
from batchpipe.pipeline.steps.salvage import salvage, salvaged_file
from batchpipe.provider import Api
from batchpipe.storage import Folder, check_allowed
from batchpipe.store import Lease, Refused, Store, new_task_ids
from batchpipe.store.redis_label import label_of
from batchpipe.telemetry.counters import Counters, reason_of
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: Reads the shards of a job; each call reads them again.
Shards = Callable[[], Iterable[ShardRecord]]

#: How long a job waits for a worker that can read its input, and for an input or folder that cannot be reached.
INPUT_WAIT_SECONDS = 3_600.0

#: How long results wait for an output that cannot be written to.
OUTPUT_WAIT_SECONDS = 3_600.0

#: Codes of trouble with inputs, not with our own files.
_OF_INPUT = ("input_missing", "input_unreachable", "input_changed", "transfer_timeout")

#: How often deleting the job's files at the provider is postponed before they are left to expire.
MAX_TIDIES = 5


class NotDelivered(TransientError):
    """A site's receiver ``raised``, or this process has not loaded it."""

    code = "unheard"

    def __init__(self, message: str, *, raised: bool) -> None:
        super().__init__(message)
        self.raised = raised


#: The fields that are read of shards that were just planned.
_OF_PLANNED = ("round", "epoch", "task_ids", "bytes", "rows")
_BEGINNING = (State.PENDING.value, State.PREPARING.value)
_END = (State.FINALIZING.value, *(state.value for state in ENDED))


class JobRunner(Runner):
    """Turns of jobs. ``tell`` sends a job's ``on_done`` and signals at least once."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        apis: Callable[[str], Api],
        publish: Publish,
        tell: Callable[[JobRecord], None],
        *,
        counters: Counters | None = None,
        waiting_in: WaitingIn | None = None,
    ) -> None:
        super().__init__(settings, store, apis, publish, counters=counters, waiting_in=waiting_in)
        self._tell = tell
        self._outputs = Outputs(settings, store)

    def prepare(self, job_id: str, epoch: int) -> Next:
        """Handle a prepare message. Raises StoreUnavailable."""
        with about(job=job_id):
            return self.counted(
                "prepare",
                (job_id, JOB),
                lambda: self._turn(job_id, epoch, _BEGINNING, State.PREPARING.value, self._prepare),
            )

    def merge(self, job_id: str, epoch: int) -> Next:
        """Handle a merge message: merge, record the end, notify. For a job that has already ended, only notify."""
        with about(job=job_id):
            return self.counted("merge", (job_id, JOB), lambda: self._turn(job_id, epoch, _END, "", self._merge))

    def _turn(self, job_id: str, epoch: int, stages: tuple[str, ...], enter: str, body: Callable[[Lease], str]) -> Next:
        link = "prepare" if enter else "merge"
        deadline = turn_deadline(self.settings, link)
        claim = self.store.leases.claim(job_id, JOB, epoch, stages, deadline=deadline, enter=enter)
        if isinstance(claim, Refused):
            return self.gone(job_id) if claim.why == "gone" else refused(claim)
        with claim, about(account=claim.job.account):
            try:
                self.note_overrun(claim, link)
                return Done(body(claim))
            except LeaseLost:
                return Done()
            except StoreUnavailable:
                raise
            except Exception as error:
                return self._trouble(claim, foreseen(error, link))

    # -- prepare ---------------------------------------------------------------------------------------------------

    def _prepare(self, lease: Lease) -> str:
        job = lease.job
        if job.overran >= MAX_OVERRUNS:
            message = (
                f"could not be prepared: {job.overran} times it made no progress, in the end for hours; "
                f"it may need {REMEDIES['prepare']}"
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
            _forget_dead_turns(lease, workspace, planned_orders(workspace))
            prepared = prepare(
                job,
                workspace,
                lease.token,
                check=lambda: check_cancel(lease),
                output=self._outputs.folder(job, job.output),
                rules=input_rules(self.settings),
                bounds=Bounds(self.settings.max_models, self.settings.max_shards),
            )
            self._announce(lease, workspace, prepared)
            _forget_dead_turns(lease, workspace, [])
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

    def _check_places(self, lease: Lease) -> None:
        """Raises InvalidInput for places that may not be used, OutputInUse for another job's output."""
        job, roots = lease.job, self.settings.roots()
        if not job.spooled:
            check_allowed(job.input, roots, "input")
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

    def _announce(self, lease: Lease, workspace: Folder, prepared: Prepared) -> None:
        """Write to the output which job owns it, and to the workspace what recover needs if Redis loses everything."""
        if (owner := self._outputs.take(lease, prepared.rows)) is not None:
            self.log(lease.job.id, [("earlier_results_kept", {"of": owner, "in": f"{EARLIER}/{owner}"})])
        self._write_manifest(lease.job, [], prepared, workspace)

    def _write_manifest(
        self, job: JobRecord, done: Iterable[ShardRecord], prepared: Prepared, workspace: Folder
    ) -> None:
        with workspace.writer(MANIFEST) as file:
            file.writelines(manifest(job, done, prepared, label_of(self.settings)))

    def _plan(self, lease: Lease, prepared: Prepared) -> str:
        """Returns in words what happened to the job; so do `_refuse`, `_merge` and `_finish`."""
        job, ids = lease.job, new_task_ids(1)
        changes = {
            "round": job.round + 1,
            "total": prepared.rows if job.total is None else job.total,
            "order_files": [*job.order_files, prepared.order_file or ""],
        }
        count, merge_epoch = self.store.leases.plan(lease, changes, _new_shards(job, prepared), ids)
        self._count_stages(job)
        if merge_epoch:
            self.publish_merge(lease, merge_epoch, ids)
            return "nothing to send"
        if job.round:
            self.counters.add("rounds")
            self.counters.add("rows_resent", prepared.rows)
        self.log(job.id, [("planned", {"round": job.round + 1, "shards": count, "rows": prepared.rows})])
        self._publish_planned(job.id, job.round + 1)
        return f"planned round {job.round + 1}, shards: {count}, rows: {prepared.rows}"

    def _publish_planned(self, job_id: str, number: int) -> None:
        """Read the shards again, since there may be too many for memory; skip those that were published again since."""
        job = self.store.jobs.get(job_id)
        for shard in self.store.shards.of_job(job, fields=_OF_PLANNED, bad="show"):
            if shard.round == number and shard.epoch == 1 and shard.stage == Stage.PLANNED:
                large = not is_small(shard.bytes, shard.rows)
                message = Message(
                    job_id, shard.index, shard.epoch, Stage.PLANNED, shard.task_ids, job.queue, large=large
                )
                self.publish(message)

    def _refuse(self, lease: Lease, problem: Problem) -> str:
        """The job fails before anything was sent."""
        self.log(lease.job.id, [("refused", {"code": problem.code, "message": problem.message})])
        if problem.code == "not_allowed" and lease.job.spooled:  # nothing stays in a place that is not allowed
            workspace_of(lease.job, self.settings).remove("")
        return self._finish(lease, State.FAILED, {"error": problem, "ok": 0, "failed": 0, "missing": 0, "total": 0})

    # -- merge -----------------------------------------------------------------------------------------------------

    def _merge(self, lease: Lease) -> str:
        job = lease.job
        if State(job.stage).ended:
            self._tell_all(lease, State(job.stage))
            return f"{job.stage}: told"
        seen = Overview(job, self._collected(lease, LOOKED_AT))
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

    def _collected(self, lease: Lease, fields: Sequence[str] = ()) -> Iterator[ShardRecord]:
        """The shards of all rounds, never all of them in memory: they are read again each time they are needed."""
        for number, shard in enumerate(self.store.shards.of_job(lease.job, fields=fields)):
            if number % 1_000 == 0:
                lease.check()
            yield shard

    def _merge_left(self, lease: Lease) -> str:
        """Files of the workspace are gone for good: make results of what is left and what the provider still has."""
        job, workspace = lease.job, workspace_of(lease.job, self.settings)
        for shard in self._collected(lease):
            self._left_of(lease, shard, workspace)  # everything is fetched before anything is written
        self.log(job.id, [(WORKSPACE_GONE, {"workspace": job.workspace})], level=logging.ERROR)

        def left() -> Iterator[ShardRecord]:
            return (self._left_of(lease, shard, workspace) for shard in self._collected(lease))

        merged = self._merge_shards(lease, left, workspace, merge_what_is_left)
        message = (
            f"files of the workspace {job.workspace} were gone: the results are in another order than the input, "
            f"{merged.ok} ok, {merged.failed} failed, and {merged.missing} missing, which may not be named"
        )
        changes = {
            **{name: getattr(merged, name) for name in ("total", "ok", "failed", "missing", "usage")},
            "error": Problem(code=WORKSPACE_GONE, message=message),
        }
        return self._finish(lease, _state(merged), changes)

    def _left_of(self, lease: Lease, shard: ShardRecord, workspace: Folder) -> ShardRecord:
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
                    self.wait_for_workspace(lease, error)
        if not (shard.output_file_id or shard.error_file_id):
            return shard.evolve(collected_file=None)
        problem = Problem(code=WORKSPACE_GONE, message="its collected rows were gone")
        move = salvage(shard, workspace, self.apis(lease.job.account), problem, check=lease.check)
        return shard.evolve(collected_file=move.changes["collected_file"])

    def _merge_all(self, lease: Lease, seen: Overview) -> str:
        job, workspace = lease.job, workspace_of(lease.job, self.settings)
        if self._may_resend(job, seen) and not (job := self.held(job)).send_no_more:
            _forget_dead_turns(lease, workspace, planned_orders(workspace))
            shards = (shard for shard in self._collected(lease, SENT) if shard.round == job.round)
            prepared = resend(job, shards, workspace, lease.token, check=lambda: check_cancel(lease))
            lease.check()  # a turn that was frozen must not set the manifest back
            self._write_manifest(job, self._collected(lease), prepared, workspace)
            _forget_dead_turns(lease, workspace, [])
            return self._plan(lease, prepared)
        merged = self._merge_shards(lease, lambda: self._collected(lease, MERGED), workspace, merge)
        changes = {
            "total": merged.total,
            "ok": merged.ok,
            "failed": merged.failed,
            "missing": merged.missing,
            "usage": merged.usage,
            "incomplete": merged.incomplete,
            "error": None if job.cancel else _job_error(merged, seen),
        }
        return self._finish(lease, _state(merged), changes)

    def _merge_shards(self, lease: Lease, shards: Shards, workspace: Folder, step: Callable[..., Merged]) -> Merged:
        """Move the results to the output; if that belongs to the job no longer, to a place of its own, and say so."""
        place = self._outputs.place(lease)
        try:
            return self._merge_into(lease, shards, workspace, place, step)
        except (OutputInUse, InvalidInput, StorageTrouble) as error:
            if place != lease.job.output:
                raise
            waits = isinstance(error, StorageTrouble) and error.passes and not self._late(lease.job.finalizing_at)
            if waits or error.code == FILE_MISSING:  # a folder of the workspace
                raise
            place = own_place(lease.job)
            merged = self._merge_into(lease, shards, workspace, place, step)
            fields = {"in": place, "message": error.message}
            self.log(lease.job.id, [("results_elsewhere", fields)], level=logging.WARNING)
            return merged

    def _late(self, since: float | None) -> bool:
        """Whether an output has been waited for long enough."""
        return since is not None and self.store.now() - since > OUTPUT_WAIT_SECONDS

    def _merge_into(
        self, lease: Lease, shards: Shards, workspace: Folder, place: str, step: Callable[..., Merged]
    ) -> Merged:
        folder = self._outputs.folder(lease.job, place)
        settle = partial(self._outputs.settle, lease, place)
        return step(lease.job, shards(), workspace, folder, check=lease.check, settle=settle)

    @staticmethod
    def _may_resend(job: JobRecord, seen: Overview) -> bool:
        return not (job.cancel or job.send_no_more) and job.round < job.attempts and seen.resend

    def _finish(self, lease: Lease, state: State, changes: dict[str, Any]) -> str:
        final = self.store.leases.finish(lease, state, changes)
        self._count_stages(lease.job)
        self.counters.add("jobs_ended", account=lease.job.account, state=final.value)
        self.counters.rows("rows", lease.job.account, changes)
        self.log(lease.job.id, [("ended", {"state": final.value, **_counts(changes)})])
        self._tell_all(lease, final)
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

    def _tell_all(self, lease: Lease, state: State) -> None:
        """Write job.json, clean up, notify the user: at least once, in an order that survives a crash at any point."""
        job = self.store.jobs.get(lease.job.id)
        if not job.notified:
            try:
                self._write_job_file(lease, job)
                self._clear(job, state, lease)
            except StorageTrouble as error:  # the results are there; callers that wait for them must not wait for ever
                if error.passes and not self._late(job.ended_at):
                    raise
                logger.warning("files left in %s: %s", job.workspace, error, extra={"event": "workspace_left"})
                self.log(job.id, [("files_left", {"message": error.message})], level=logging.WARNING)
            self._tell_listeners(job, lease)
            self.store.leases.save(lease, {"notified": True})
        self._tidy(job, lease)
        self.store.leases.close_job(lease)

    def _clear(self, job: JobRecord, state: State, lease: Lease) -> None:
        workspace = workspace_of(job, self.settings)
        if workspace.is_local:
            workspace.remove("downloads")  # downloads that were broken off and never continued
        if state is State.SUCCEEDED and not self.settings.keep_workspace:
            clean_up(job, workspace)
            return
        shards = self.store.shards.of_job(job) if job.shards else ()
        try:
            names = {name for one in shards for name in (one.file, one.collected_file, salvaged_file(one)) if name}
        except RecordUnreadable:  # we cannot tell which files belong to it: all of them stay
            return
        remove_leftovers(workspace, {*job.order_files, *names}, lease.check)

    def _tell_listeners(self, job: JobRecord, lease: Lease) -> None:
        """Raises TransientError; but receivers that always fail, or are never loaded, do not block the job for ever."""
        try:
            self._tell(job)
        except NotDelivered as error:
            self.store.leases.save(
                lease,
                {"notify_attempts": job.notify_attempts + 1, "receiver_errors": job.receiver_errors + error.raised},
            )
            if job.notify_attempts < MAX_TELLS:
                raise
            level = logging.ERROR if error.raised else logging.WARNING
            logger.log(
                level, "no receiver is notified of the end of job %s: %s", job.id, error, extra={"event": "not_told"}
            )
            self.log(job.id, [("not_told", {"message": error.message})])

    def _tidy(self, job: JobRecord, lease: Lease) -> None:
        """Delete files at the provider that are no longer needed. Raises TransientError, a limited number of times."""
        if not job.shards:
            return
        try:
            shards, which = self.store.shards.of_job(job), self.settings.delete_files
            deleted = tidy(job, shards, self.apis(job.account), which, check=lease.check)
        except StoreUnavailable:
            raise
        except TransientError as error:
            if job.cleanup_attempts < MAX_TIDIES:
                self.store.leases.save(lease, {"cleanup_attempts": job.cleanup_attempts + 1})
                raise
            self.log(job.id, [("files_left", {"message": error.message})])
        except LeaseLost:
            raise
        except out_of_time():
            raise
        except Exception as error:  # no error may keep an ended job open, and its output locked, for ever
            self.log(job.id, [("files_left", {"message": words(error)})])
        else:
            if deleted:
                self.log(job.id, [("files_deleted", {"files": deleted})])

    def _write_job_file(self, lease: Lease, job: JobRecord) -> None:
        try:
            self._outputs.describe(lease, job, lambda: json_of_job(job, self._shown(job)))
        except (InvalidInput, StorageTrouble) as error:  # the output cannot be written, but Redis knows the end
            if isinstance(error, StorageTrouble) and error.passes and not self._late(job.ended_at):
                raise
            logger.warning("job.json not written: %s", error, extra={"event": "job_file"})

    def _shown(self, job: JobRecord) -> Callable[[], Iterator[ShardRecord]]:
        return lambda: self.store.shards.of_job(job, fields=SHOWN, bad="show")

    # -- trouble ---------------------------------------------------------------------------------------------------

    def _trouble(self, lease: Lease, error: Exception) -> Next:
        lease.stop()
        passes = isinstance(error, TransientError | OSError)
        if not passes and not isinstance(error, SettingsError):
            logger.error("turn failed", exc_info=error, extra={"event": "turn_failed"})
        problem = Problem(code=getattr(error, "code", "internal_error"), message=words(error))
        named = getattr(error, "after", None)
        pause = FIRST_PAUSE * 2 ** min(lease.job.tries, 10)
        if passes:  # each turn may read and write gigabytes before it meets the full disk
            pause = min(max(2 * lease.job.wait, 5 * FIRST_PAUSE), LONGEST_BACKOFF)
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
            self.wake(lease.job.id, JOB)
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
            task_ids=new_task_ids(len(LINKS)),
        )


def _forget_dead_turns(lease: Lease, workspace: Folder, orders: list[str]) -> None:
    """Remove what earlier turns of this job left when they were killed. ``orders``: order files to keep, with their
    shards, besides those of the record.
    """
    kept = {lease.token, *map(token_of, (*lease.job.order_files, *orders))}
    with suppress(StorageTrouble):  # leftovers do no harm
        remove_dead_turns(workspace, kept, lease.check)


def _state(merged: Merged) -> State:
    if merged.ok == merged.total:
        return State.SUCCEEDED if merged.total else State.FAILED
    return State.PARTIAL if merged.ok else State.FAILED


def _job_error(merged: Merged, seen: Overview) -> Problem | None:
    """What a person should read first: the error of a shard, else that no row is ok."""
    if merged.ok == merged.total and merged.total:
        return None  # the refused rows were sent again
    if seen.error is not None:
        return seen.error
    if seen.cancelled is not None:
        message = f"{seen.cancelled} was cancelled at the provider, and not by batchpipe; not all of its rows were run"
        return Problem(code="cancelled_elsewhere", message=message)
    if merged.total and not merged.ok:
        message = f"no row is ok: {merged.failed} failed, {merged.missing} without an answer; see errors.jsonl"
        return Problem(code="no_row_ok", message=message)
    return None


def _counts(changes: dict[str, Any]) -> dict[str, Any]:
    found = {name: changes.get(name) for name in ("total", "ok", "failed", "missing")}
    return found | ({"incomplete": changes["incomplete"]} if changes.get("incomplete") else {})
