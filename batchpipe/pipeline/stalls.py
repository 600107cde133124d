"""For the sweep: finds batches that are late, and says so once in the log of their job."""

from __future__ import annotations

import logging
import random

from batchpipe.errors import StoreUnavailable
from batchpipe.model.pace import History
from batchpipe.model.stalls import LEAST_SECONDS, stall_of
from batchpipe.pipeline.runner import Runner
from batchpipe.telemetry.logs import about

logger = logging.getLogger(__name__)

#: Batches that are judged at once; of more that are old, others the next time.
MOST_JUDGED = 500


def report_late(runner: Runner, account: str, now: float) -> int:
    """Look for batches in flight that stand far outside what their model usually takes, once a minute over all sweeps.

    Returns how many are newly said to be late. Raises StoreUnavailable, and nothing else: it must not hold up a sweep.
    """
    try:
        return _report(runner, account, now)
    except StoreUnavailable:
        raise
    except Exception:
        logger.exception("late batches of account %r not looked for", account, extra={"event": "not_judged"})
        return 0


def _report(runner: Runner, account: str, now: float) -> int:
    paces = runner.store.paces
    if not paces.take_judging(account, now):
        return 0
    paces.forget_late(account)
    old = paces.count_in_flight(account, now - LEAST_SECONDS)
    if not old:
        return 0
    first = 0 if old <= MOST_JUDGED else random.randrange(old)  # all come up in time, whatever stands before them
    histories: dict[str | None, History] = {}
    found = 0
    for shard in paces.in_flight(account, first, min(MOST_JUDGED, old - first)):
        if shard.model not in histories:
            histories[shard.model] = paces.of(account, shard.model).took
        problem = stall_of(shard, histories[shard.model], now)
        if problem is None or not paces.mark_late(shard, problem):
            continue
        found += 1
        with about(job=shard.job, shard=shard.index, batch=shard.batch_id):
            fields = {"batch_id": shard.batch_id, "message": problem.message}
            runner.log(shard.job, [(problem.code, fields)], level=logging.WARNING, shard=shard.index)
    return found
