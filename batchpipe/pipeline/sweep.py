"""The safety net: publishes overdue work again, and cancels batches that must not run.

Any number of sweeps at once do no harm.
"""

from __future__ import annotations

import logging

from batchpipe.config.account import SANDBOX_ACCOUNT
from batchpipe.config.site import current_site
from batchpipe.errors import NO_QUOTA, BatchpipeError, SettingsError, StoreUnavailable
from batchpipe.model.provider import Provider
from batchpipe.model.stats import Clock
from batchpipe.pipeline.copied_inputs import remove_unrecorded_at_times
from batchpipe.pipeline.looks import LOOK_WITH_NEWS_SECONDS, Walk, look, seconds_between
from batchpipe.pipeline.manifest import prune_workspaces
from batchpipe.pipeline.orphans import Orphans
from batchpipe.pipeline.overdue import PASS_LENGTH, publish_overdue
from batchpipe.pipeline.republish_many import republish_rest
from batchpipe.pipeline.room import grant_rooms, publish_granted
from batchpipe.pipeline.runner import Runner
from batchpipe.pipeline.search_records import SearchRecords
from batchpipe.pipeline.stalls import report_late
from batchpipe.pipeline.unanswered import Search
from batchpipe.store import LookState
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: Pause between two looks into an account's list, over all sweeps.
LIST_SECONDS = 30.0
#: The same between two that leave nothing out, for orphans, however many calls they take.
MOST_LIST_SECONDS = 300.0
#: A list is read back to the last one and this much more: lists lag, and clocks differ.
OVERLAP_SECONDS = 1_200.0
#: How far back the first list is read, and how long after its last create call an account is watched.
LOOK_BACK_SECONDS = 26 * 3_600.0


def sweep(
    runner: Runner,
    *,
    limit: int = PASS_LENGTH,
    listing: bool | None = None,
    late: float = 0.0,
    alone: bool = False,
) -> int:
    """One pass. Returns how many records were published again. Raises StoreUnavailable.

    ``alone``: in no worker; then notifications are sent here where no worker listens, which takes some seconds at most.

    ``listing``: read the accounts' lists of batches now (True), not at all (False), or if it is time (None), and has
    been for ``late`` seconds.
    """
    grant_rooms(runner)
    republished = publish_overdue(runner, limit)
    republish_rest(runner, limit)
    runner.store.jobs.prune_lists()
    now = runner.store.now()
    prune_workspaces(runner.settings, runner.store.jobs.closed, now)
    remove_unrecorded_at_times(runner.settings, runner.store, now)
    if listing is not False:
        look_after_accounts(runner, at_once=listing is True, late=late)
    _count(runner, republished)
    _deliver(runner, here=alone)
    return republished


def _deliver(runner: Runner, *, here: bool) -> None:
    """See to the notifications that are due; trouble with that must not fail a sweep."""
    if runner.deliver is None:
        return
    try:
        runner.deliver(here)
    except StoreUnavailable:
        raise
    except Exception:
        logger.exception("notifications not sent", extra={"event": "not_told"})


def look_after_accounts(runner: Runner, *, at_once: bool = False, late: float = 0.0) -> None:
    """Look at the batches of each account for which it is time, or at once. Raises StoreUnavailable.

    ``late``: where many are in flight, only if it has been time for so many seconds, and nobody has looked.
    """
    clock = runner.store.connection.clock()
    _report_clock(clock)
    creating = set(runner.store.accounts.creating(clock.now - LOOK_BACK_SECONDS))
    for account in runner.store.accounts.creating(0.0):
        with about(account=account):
            report_late(runner, account, clock.now)
            _look_after(runner, account, clock, creating=account in creating, at_once=at_once, late=late)
    publish_granted(runner)


def _report_clock(clock: Clock) -> None:
    """Log once that Redis' clock was set back: nothing else would show it, because everything goes on."""
    if clock.ahead and clock.back_at and current_site().is_first_time("clock_back", clock.back_at):
        logger.error("%s", clock.words(), extra={"event": "clock_back"})


def _count(runner: Runner, republished: int) -> None:
    runner.counters.add("sweeps")
    runner.counters.add("swept", republished)
    runner.flush()
    runner.store.due.note_sweep()


def _look_after(
    runner: Runner, account: str, clock: Clock, *, creating: bool, at_once: bool, late: float = 0.0
) -> None:
    """Look at an account's batches, if it is time: cancel orphans, publish shards again whose batches have ended."""
    state = runner.store.looks.state(account)
    many = state.in_flight > runner.settings.polls_in_flight
    told = state.in_flight > 0 and runner.trust.of(account)
    # polls are seldom where webhooks tell of ends: one that was lost is made up for by looks, also with few in flight
    missed = told and abs(clock.now - state.looked) >= LOOK_WITH_NEWS_SECONDS
    watch = many or missed or (at_once and state.in_flight > 0)
    whole = creating and (at_once or is_time_for_whole(state, clock.now))
    asked = runner.store.unanswered.is_walk_awaited(account)
    if not (watch or whole or asked):
        return
    try:
        in_settings = runner.settings.account(account)
        every = LIST_SECONDS
        if many:
            every = seconds_between(state.in_flight, in_settings.looks_per_second, news=told)
        if asked:
            every = min(every, LIST_SECONDS)
        if at_once:
            every = 0.0
        elif abs(clock.now - state.begun) < every + (late if watch else 0.0):
            return
    except SettingsError as error:  # before the look is noted: workers that have the key look instead
        _report_account(account, error)
        return
    try:
        pause = runner.store.accounts.pause_of(account)
        if not in_settings.lists_batches or (pause is not None and pause.code != NO_QUOTA):
            return
        api = runner.apis(account)
        records = SearchRecords(runner, account)
        search = Search(records, api, reads=False)
        since = records.young() if asked else None
        if since is None and not (watch or whole):
            return
        walk_for_all(runner, account, api, search, state, since=since, whole=whole, watch=watch, every=every)
    except StoreUnavailable:
        raise
    except BatchpipeError as error:  # no key on this host, or the provider is down: a later sweep, or another host's
        logger.warning("batches of account %r not listed: %s", account, error, extra={"event": "not_listed"})
        return
    except Exception:  # the other accounts and overdue work must not wait for this one
        logger.exception("batches of account %r not listed", account, extra={"event": "not_listed"})
        return


def walk_for_all(
    runner: Runner,
    account: str,
    api: Provider,
    search: Search,
    state: LookState,
    *,
    since: float | None,
    whole: bool,
    watch: bool,
    every: float = 0.0,
) -> Walk | None:
    """Look at an account's batches, for whatever it is time: at least back to ``since``, with ``whole`` back to where
    the last look left nothing to do, with ``watch`` to the oldest in flight. Returns and raises as ``look`` does.
    """
    orphans = Orphans(runner, api)
    if whole:
        clock = runner.store.connection.clock()
        back = _since(clock.now, state.done) - clock.slack
        since = back if since is None else min(since, back)
    walk = look(runner, account, api, [search, orphans], every=every, since=since, watch=watch)
    if walk is not None and whole:
        # Else the next look goes as far back as this one. A list that shows none of ours does not prove that there is
        # none: for a while the key may be one of another project.
        done = not orphans.left and orphans.ours > 0
        runner.store.looks.note_whole(account, walk.begun, calls=walk.calls, done=done)
    return walk


def is_time_for_whole(state: LookState, now: float) -> bool:
    """Whether the next look leaves none out."""
    return abs(now - state.whole) >= _whole_seconds(state)


def _whole_seconds(state: LookState) -> float:
    """From one look that leaves none out to the next: the more calls it takes, the more seldom."""
    return min(LIST_SECONDS * max(state.calls, 1), MOST_LIST_SECONDS)


def _report_account(account: str, error: SettingsError) -> None:
    """Log once that an account cannot be watched here. The account of a sandbox ends with it; that is not logged."""
    is_first_time = account != SANDBOX_ACCOUNT and current_site().is_first_time("not_listed", account)
    level = logging.WARNING if is_first_time else logging.DEBUG
    logger.log(level, "batches of account %r not listed: %s", account, error, extra={"event": "not_listed"})


def _since(now: float, done: float) -> float:
    return max(done, now - LOOK_BACK_SECONDS) - OVERLAP_SECONDS
