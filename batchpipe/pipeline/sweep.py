"""The safety net: publishes overdue work again, and cancels batches that must not run.

Any number of sweeps at once do no harm.
"""

from __future__ import annotations

import logging
from itertools import islice

from batchpipe.config.account import SANDBOX_ACCOUNT
from batchpipe.config.site import current_site
from batchpipe.errors import NO_QUOTA, BatchpipeError, Refused, SettingsError, StoreUnavailable, Unavailable
from batchpipe.model.provider import Batch, Provider
from batchpipe.model.records import ShardRecord, Stage, Status
from batchpipe.model.stats import Clock
from batchpipe.pipeline.copied_inputs import remove_unrecorded_at_times
from batchpipe.pipeline.manifest import prune_workspaces
from batchpipe.pipeline.overdue import PASS_LENGTH, publish_overdue
from batchpipe.pipeline.republish_many import republish_rest
from batchpipe.pipeline.room import grant_rooms
from batchpipe.pipeline.runner import Runner
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: Pause between two looks into an account's list, over all sweeps.
LIST_SECONDS = 30.0
#: A list is read back to the last one and this much more: lists lag, and clocks differ.
OVERLAP_SECONDS = 1_200.0
#: How far back the first list is read, and how long after its last create call an account is watched.
LOOK_BACK_SECONDS = 26 * 3_600.0


def sweep(runner: Runner, *, limit: int = PASS_LENGTH, listing: bool | None = None) -> int:
    """One pass. Returns how many records were published again. Raises StoreUnavailable.

    ``listing``: read the accounts' lists of batches now (True), not at all (False), or if it is time (None).
    """
    grant_rooms(runner)
    republished = publish_overdue(runner, limit)
    republish_rest(runner, limit)
    runner.store.jobs.prune_lists()
    now = runner.store.now()
    prune_workspaces(runner.settings, runner.store.jobs.closed, now)
    remove_unrecorded_at_times(runner.settings, runner.store, now)
    if listing is not False:
        clock = runner.store.connection.clock()
        _report_clock(clock)
        for account in runner.store.accounts.creating(clock.now - LOOK_BACK_SECONDS):
            with about(account=account):
                _look_after(runner, account, at_once=listing is True)
    _count(runner, republished)
    return republished


def _report_clock(clock: Clock) -> None:
    """Log once that Redis' clock was set back: nothing else would show it, because everything goes on."""
    if clock.ahead and clock.back_at and current_site().is_first_time("clock_back", clock.back_at):
        logger.error("%s", clock.words(), extra={"event": "clock_back"})


def _count(runner: Runner, republished: int) -> None:
    runner.counters.add("sweeps")
    runner.counters.add("swept", republished)
    runner.flush()
    runner.store.due.note_sweep()


def _look_after(runner: Runner, account: str, *, at_once: bool) -> None:
    """Read an account's recent batches: cancel orphans, publish the shards again of those that have ended."""
    clock = runner.store.connection.clock()
    now = clock.now
    begun, done = runner.store.accounts.listings(account)
    if not at_once and abs(now - begun) < LIST_SECONDS:
        return
    try:
        in_settings = runner.settings.account(account)
    except SettingsError as error:  # before the look is noted: workers that have the key look instead
        _report_account(account, error)
        return
    try:
        runner.store.accounts.note_listing(account, begun=now)
        pause = runner.store.accounts.pause_of(account)
        if not in_settings.lists_batches or (pause is not None and pause.code != NO_QUOTA):
            return
        api, left, ours = runner.apis(account), 0, 0
        batches = api.iter_batches(_since(now, done) - clock.slack)
        while page := list(islice(batches, 100)):
            alive, known = _judge(runner, api, page)
            left, ours = left + alive, ours + known
    except StoreUnavailable:
        raise
    except BatchpipeError as error:  # no key on this host, or the provider is down: a later sweep, or another host's
        logger.warning("batches of account %r not listed: %s", account, error, extra={"event": "not_listed"})
        return
    except Exception:  # the other accounts and overdue work must not wait for this one
        logger.exception("batches of account %r not listed", account, extra={"event": "not_listed"})
        return
    # Else the next look goes as far back as this one. A list that shows none of ours does not prove that there is none:
    # for a while the key may be one of another project.
    if not left and ours:
        runner.store.accounts.note_listing(account, done=now)


def _report_account(account: str, error: SettingsError) -> None:
    """Log once that an account cannot be watched here. The account of a sandbox ends with it; that is not logged."""
    is_first_time = account != SANDBOX_ACCOUNT and current_site().is_first_time("not_listed", account)
    level = logging.WARNING if is_first_time else logging.DEBUG
    logger.log(level, "batches of account %r not listed: %s", account, error, extra={"event": "not_listed"})


def _since(now: float, done: float) -> float:
    return max(done, now - LOOK_BACK_SECONDS) - OVERLAP_SECONDS


def _judge(runner: Runner, api: Provider, batches: list[Batch]) -> tuple[int, int]:
    """Returns how many orphans could not be cancelled, and how many of the batches are ours.

    The records are read after the list, so a batch that is not recorded by now was not recorded then.
    """
    left = 0
    ours = [(batch, place) for batch in batches if (place := _place(batch)) is not None]
    shards = runner.store.shards.at([place for _, place in ours])
    for (batch, _), shard in zip(ours, shards, strict=True):
        if shard is None:
            continue  # of another Redis, or of one that has lost it: see recover
        if _is_orphan(batch, shard):
            left += not _cancel_orphan(runner, api, batch, shard)
        elif batch.id == shard.batch_id and batch.status in Status.FINAL and _awaits_end(shard):
            seen = {"status": batch.status, "counts": batch.counts}
            if runner.store.shards.record_batch_status(shard, batch.id, seen):
                runner.republish(shard.job, shard.index, when="waiting")
    return left, sum(shard is not None for shard in shards)


def _awaits_end(shard: ShardRecord) -> bool:
    """A shard that knows of the end, and waits for files that lag, need not be published again."""
    return shard.stage == Stage.CREATED and shard.late_at is None


def _place(batch: Batch) -> tuple[str, int] | None:
    """The job and shard that a batch names, if it is one of ours."""
    job, index = batch.metadata.get("batchpipe_job"), batch.metadata.get("batchpipe_shard", "")
    return (job, int(index)) if job and index.isascii() and index.isdigit() and len(index) < 10 else None


def _is_orphan(batch: Batch, shard: ShardRecord) -> bool:
    """It is running, and its shard has another batch or will have none. While that is open, it may yet be adopted."""
    if batch.status in Status.FINAL or batch.status == "cancelling":
        return False
    if batch.id == shard.batch_id or batch.id in shard.spent:
        return False
    if batch.metadata.get("batchpipe_key", shard.key) != shard.key:
        return True  # from an earlier try: it can never be adopted, because the number of tries only grows
    return shard.batch_id is not None or shard.stage == Stage.COLLECTED


def _cancel_orphan(runner: Runner, api: Provider, batch: Batch, shard: ShardRecord) -> bool:
    """Returns whether the batch is dealt with."""
    ids = {"job": shard.job, "shard": shard.index, "batch": batch.id}
    logger.error("an orphan batch is cancelled: its shard has another", extra={"event": "orphan", **ids})
    try:
        api.cancel_batch(batch.id)
    except Refused:
        return True  # it has just ended
    except Unavailable as error:  # one batch must not hold up the others
        logger.error("an orphan batch could not be cancelled: %s", error, extra={"event": "orphan", **ids})
        return False
    runner.counters.add("orphans_cancelled")
    runner.log(shard.job, [("orphan_cancelled", {"batch_id": batch.id})], shard=shard.index)
    return True
