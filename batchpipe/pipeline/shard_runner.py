"""Turns of shards: a turn claims the record, gives one step only what it may touch, and ends with the next action."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Unpack, cast

import msgspec

from batchpipe.config.limits import turn_deadline
from batchpipe.config.settings import Settings
from batchpipe.errors import (
    NO_QUOTA,
    LeaseLost,
    Paused,
    StoreUnavailable,
)
from batchpipe.model.lateness import WELL, attended, waits_of
from batchpipe.model.provider import Provider
from batchpipe.model.records import Move, Problem, ShardRecord, Stage
from batchpipe.model.room import TooLarge
from batchpipe.model.steps import SHARD_STEPS, Step, follows
from batchpipe.pipeline.create_actions import HELD_BACK, GiveUp, Over
from batchpipe.pipeline.create_context import CreateContext
from batchpipe.pipeline.further_steps import FurtherSteps, after_further
from batchpipe.pipeline.manifest import workspace_of
from batchpipe.pipeline.messages import Continue, Done, Next, Publish, Retry, denied, lost_lease
from batchpipe.pipeline.pricing import prices_of
from batchpipe.pipeline.reading import NoSlot, TurnReads, budgeted, slots_for
from batchpipe.pipeline.room import NoRoom, pass_on_room, wait_for_room
from batchpipe.pipeline.runner import MAX_LOST, Shared, check_cancel, numbers
from batchpipe.pipeline.shard_trouble import Failed, ShardTrouble, is_committed
from batchpipe.pipeline.shard_words import what_follows, why
from batchpipe.pipeline.slots import is_small
from batchpipe.pipeline.steps.create import create
from batchpipe.pipeline.steps.download import download
from batchpipe.pipeline.steps.poll import Pace, poll
from batchpipe.pipeline.steps.upload import upload
from batchpipe.storage import Folder
from batchpipe.store import ClaimDenied, Following, Lease, ShardLease, Store, new_task_ids
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: What a step answers: where its shard goes; or why its rows are given up; or that its turn is over.
Result = Move | Problem | GiveUp | Over | TooLarge


class ShardRunner(FurtherSteps):
    """Turns of shards: the four links of the chain."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        apis: Callable[[str], Provider],
        publish: Publish,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(settings, store, apis, publish, **shared)
        self.trouble = ShardTrouble(self)

    def run(self, name: str, job_id: str, index: int, epoch: int) -> Next:
        """Handle one message. Raises only StoreUnavailable (Redis is away: try again later)."""
        steps = [SHARD_STEPS[name]]
        with about(job=job_id, shard=index):
            return self.counted(steps, job_id, index, lambda: self._run(steps, job_id, index, epoch))

    def _run(self, steps: list[Step], job_id: str, index: int, epoch: int) -> Next:
        """Take the turn of ``steps``, to which a further step is added that was taken in it, too."""
        step, before = steps[0], ""
        ahead = lease = cast("Lease | ClaimDenied | None", self.ahead.take(job_id, index, epoch, step))
        if lease is None:
            account = self.store.jobs.remembered_account_of(job_id)
            if account is None:
                return self.gone(job_id)
            self._api_or_trouble(account)  # built before the claim: its 20 ms are not the lease's
            deadline = turn_deadline(self.settings, step)
            lease = self.store.leases.claim_shard(job_id, index, epoch, step.stages, deadline=deadline)
        if isinstance(lease, ClaimDenied):
            return self.gone(job_id) if lease.why == "gone" else denied(lease)
        assert isinstance(lease, ShardLease)
        account = lease.job.account
        self.store.jobs.remember_account(job_id, account)
        with lease, about(account=account, batch=lease.shard.batch_id):
            try:
                api = self._api_or_trouble(account)
                self.note_overrun(lease, step)
                ending, before = self.go_further(steps, lease, api, self._step(step, lease, api))
            except LeaseLost:
                return lost_lease(ahead is not None)
            except StoreUnavailable:
                raise
            except Exception as error:
                try:
                    ending = self.trouble.met(step, lease, error)
                except LeaseLost:
                    return lost_lease(ahead is not None)
            lease.stop()
            following = self._end(steps[-1], lease, ending)
            return after_further(steps[-1], before, following) if len(steps) > 1 else following

    def _api_or_trouble(self, account: str) -> Provider | Exception:
        """An error here is the shard's: it is raised once the shard is claimed."""
        try:
            return self.apis(account)
        except StoreUnavailable:
            raise
        except Exception as error:
            return error

    def _step(self, step: Step, lease: ShardLease, api: Provider | Exception) -> Move | Over | Failed:
        job, shard = lease.job, attended(lease.shard, self.store.now())
        lease.shard = shard
        if job.cancel and step.sends and not is_committed(shard):
            return self.trouble.abandon(lease, Problem(code="cancelled", message="the job was cancelled"))
        if shard.lost >= MAX_LOST and not is_committed(shard):
            message = f"its worker vanished {shard.lost} times during {step.name}"
            return self.trouble.abandon(lease, Problem(code="worker_lost", message=message))
        if isinstance(api, Exception):
            raise api
        pause = lease.pause
        # reading, cancelling and fetching need no quota, and a batch that runs on is billed
        if pause is not None and (pause.code != NO_QUOTA or step.sends):
            raise Paused(pause.message, code=pause.code, after=pause.seconds)
        functions = {"upload": self._upload, "create": self._create, "poll": self._poll, "download": self._download}
        try:
            result = functions[step.name](lease, api)
        except NoSlot as later:
            return later.later(lease.shard)
        if isinstance(result, Problem) and shard.landing:  # nothing new: what was collected before stays
            return Move(stage=Stage.COLLECTED, changes={"landing": False, "error": result})
        if isinstance(result, TooLarge):
            return self.trouble.too_large(lease, result)
        if isinstance(result, GiveUp | Problem):
            problem = result.problem if isinstance(result, GiveUp) else result
            return self.trouble.abandon(lease, problem, refused=isinstance(result, GiveUp) and result.refused)
        return result

    # -- what each step is given -----------------------------------------------------------------------------------

    def _upload(self, lease: ShardLease, api: Provider) -> Result:
        if self.held(lease.job).send_no_more:
            return GiveUp(HELD_BACK)
        if not lease.admitted:
            # the call is counted first, else no record may know the file
            waiting = wait_for_room(lease, self.store, self.settings, uploads=lease.shard.uploads + 1)
            if waiting is not None:
                return waiting
        return upload(
            lease.shard,
            workspace_of(lease.job, self.settings),
            budgeted(api, self._reads(lease, at_once=True)),
            now=self.store.now(),
            longest=self.settings.refusal_wait_seconds,
            check=lambda: check_cancel(lease),
        )

    def _create(self, lease: ShardLease, api: Provider) -> Result:
        job, shard = lease.job, lease.shard
        if not is_committed(shard):  # its answers could not be matched to rows: not worth paying for
            workspace_of(job, self.settings).size(shard.file)
        if not shard.calls:  # else look first for what an unanswered call made
            job = self.held(job)
        context = CreateContext(self, lease, api)
        # a fresh file that is not ready is asked for at once
        reads = self._reads(lease, at_once=shard.intent_at is None)
        try:
            ending = create(job, shard, budgeted(api, reads), context)
        except NoRoom:  # not before the call: most have room since their upload
            return wait_for_room(lease, self.store, self.settings) or Move(stage=Stage.UPLOADED)
        if isinstance(ending, Move):
            return reads.paid(ending)
        return Over(settled=True, after=context.first_look) if ending == Over(settled=True) else ending

    def _poll(self, lease: ShardLease, api: Provider) -> Result:
        job = lease.job
        account, clock = self.settings.account(job.account), self.store.connection.recent_clock()
        patience, took = account.patience_seconds, self.store.paces.of(job.account, lease.shard.model).took
        usual = Pace(self.settings.poll_min_seconds, self.settings.poll_max_seconds, took)
        return poll(
            job,
            lease.shard,
            api,
            now=clock.now,
            pace=self.trust.pace(job, lease.shard, usual),
            take_slot=slots_for(self.store, self.settings, job.account, lease.shard),
            patience=patience + clock.slack if patience is not None else None,  # the provider's clock may be behind
            files_patience=self.settings.files_patience_seconds,
            unseen_seconds=self.settings.unseen_seconds,
        )

    def _download(self, lease: ShardLease, api: Provider) -> Result:
        reads = self._reads(lease)
        ending = download(
            lease.job,
            lease.shard,
            workspace_of(lease.job, self.settings),
            budgeted(api, reads),
            lease.token,
            now=self.store.now(),
            files_patience=self.settings.files_patience_seconds,
            unseen_seconds=self.settings.unseen_seconds,
            prices=prices_of(self.settings, lease.job.account),
            check=lease.check,
            elsewhere=Folder(str(self.settings.home / "downloads"), private=True),
        )
        return reads.paid(ending)

    def _reads(self, lease: ShardLease, *, at_once: bool = False) -> TurnReads:
        account = lease.job.account
        return TurnReads(self.store, self.settings, account, lease.shard, sleep=self.sleep, at_once=at_once)

    # -- the end of a turn -----------------------------------------------------------------------------------------

    def _end(self, step: Step, lease: ShardLease, ending: Move | Over | Failed) -> Next:
        if isinstance(ending, Over):
            if ending.settled:
                self.count_stage(lease.shard.stage, lease.shard.uploaded_at)
            return Continue("created", ending.after, small=_is_small(lease.shard)) if ending.settled else Done()
        if isinstance(ending, Move) and ending.hold is not None:
            self._hold(lease, ending.hold)
        try:
            move, tries = self._as_move(lease.shard, ending)
            ids = new_task_ids(1)
            events = [*move.events, *_collected(move)]
            recorded = [(event, {"shard": lease.index, **fields}) for event, fields in events]
            news, merge_epoch = self.store.leases.advance(
                lease, move, tries=tries, merge_ids=ids, following=self._following(lease, move), events=recorded
            )
        except LeaseLost:
            return Done()
        self.ahead.keep(lease.following)
        self._count_move(lease.job.account, lease.shard, move)
        pass_on_room(self, lease.shard, move, news.granted)
        paused = isinstance(ending, Failed) and ending.reason == "paused"  # logged once per account
        level = logging.DEBUG if paused else logging.INFO
        self.log(lease.job.id, events, level=level, recorded=True, shard=lease.index)
        if move.pause is not None:
            self.trouble.pause(lease, move.pause, None)
        if move.stage == Stage.COLLECTED:
            if merge_epoch:
                small = lease.job.shards == 1 and _is_small(lease.shard)
                self.publish_merge(lease, merge_epoch, ids, small=small)
            return Done(f"collected: {numbers(move.changes)}")
        if news.republish:
            self.republish(lease.job.id, lease.index)
            return Done("published again")
        if move.parked:
            return Done(move.parked)
        if move.changes.get("parked"):
            return Done(f"watched by looks: {why(lease.shard, move)}")
        if move.stage == lease.shard.stage:
            reason = ending.reason if isinstance(ending, Failed) else step.waits
            return Retry(move.after, why(lease.shard, move), reason)
        if follows(lease.shard.stage, move.stage):
            return Continue(why(lease.shard, move), small=_is_small(lease.shard))
        # back at an earlier stage: a new chain starts there
        self.republish(lease.job.id, lease.index, after=move.after)
        return Done(f"back to {move.stage.value}: {why(lease.shard, move)}")

    def _following(self, lease: ShardLease, move: Move) -> Following | None:
        """The turn that this visit takes next, if it takes one."""
        small = _is_small(lease.shard)
        if move.stage == Stage.COLLECTED:
            return self.ahead.link_of(self.settings, "merge") if small and lease.job.shards == 1 else None
        return self.ahead.link_after(self.settings, move.stage, small=small)

    def _hold(self, lease: ShardLease, problem: Problem) -> None:
        """Called before the turn is ended: a crash in between repeats the call, and the script recognises it."""
        mode = "land" if lease.job.send_no_more else self.settings.cancelled_elsewhere
        said = Problem(code=problem.code, message=f"{problem.message}: {what_follows(mode, lease.job.id)}")
        if self.store.shards.record_cancelled_elsewhere(lease.shard, mode, said):
            fields = {"batch_id": lease.shard.batch_id, "then": mode, "message": said.message}
            self.log(lease.job.id, [("cancelled_elsewhere", fields)], level=logging.WARNING, shard=lease.index)

    def _count_move(self, account: str, shard: ShardRecord, move: Move) -> None:
        if move.stage == shard.stage:
            return
        self.count_stage(shard.stage, getattr(shard, f"{shard.stage}_at"))
        if move.stage == Stage.COLLECTED:
            self.counters.rows("rows_collected", account, move.changes)
            self.counters.tokens(account, move.changes.get("usage") or {})
        if (shard.stage, move.stage) == (Stage.CREATED, Stage.UPLOADED):
            self.counters.add("batches_resent")
            self.counters.wait("token_limit" if move.pause is None else "paused", move.after)

    @staticmethod
    def _as_move(shard: ShardRecord, ending: Move | Failed) -> tuple[Move, str]:
        if isinstance(ending, Failed):
            return ending.as_move(shard), "keep" if ending.counted else "refund"
        ends = dict(WELL)
        if ending.stage != shard.stage and ending.stage in (Stage.UPLOADED, Stage.CREATED, Stage.ENDED):
            ends |= {"unfound": 0, "refused_at": None}
        changes = {**waits_of(shard), **ends, **ending.changes}
        return msgspec.structs.replace(ending, changes=changes), "reset"


def _collected(move: Move) -> list[tuple[str, dict[str, Any]]]:
    """The event of a shard that is collected."""
    if move.stage != Stage.COLLECTED:
        return []
    counts = {name: move.changes.get(name) for name in ("ok", "failed", "missing")}
    early = move.changes.get("incomplete")
    return [("collected", counts | ({"incomplete": early} if early else {}))]


def _is_small(shard: ShardRecord) -> bool:
    return is_small(shard.bytes, shard.rows)
