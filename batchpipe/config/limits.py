"""How long a turn without progress and a whole Celery task may take. Both follow from the settings."""

from __future__ import annotations

import sys

from batchpipe.config.settings import Settings
from batchpipe.model.steps import STEPS, Step

#: A turn that ran into its deadline gets twice as long the next time, up to so many times the first one.
LONGEST_GROWTH = 8
#: The shortest limit of a task, whatever the settings say.
SHORT_TASK_SECONDS, LONG_TASK_SECONDS = 900, 86_400
#: The soft limit raises an error in the task, which then records it; the hard one ends the process.
HARD_AFTER_SOFT_SECONDS = 60
#: How long, at least, a message may be unacknowledged in Redis before it is delivered again.
VISIBILITY_SECONDS = 1_800


def turn_deadline(settings: Settings, step: Step) -> float:
    """Seconds that a turn may go without progress the first time it is tried."""
    return step.deadline(control=settings.control_timeout_seconds, transfer=settings.transfer_timeout_seconds)


def task_limit(settings: Settings, name: str) -> int:
    """The soft time limit of a task of ours, in seconds. ``name`` without its ``batchpipe.``."""
    is_long = name in STEPS and STEPS[name].is_long
    alike = [step for step in STEPS.values() if step.is_long == is_long]
    grown = LONGEST_GROWTH * max(turn_deadline(settings, step) for step in alike)
    if not is_long:
        return max(SHORT_TASK_SECONDS, int(grown + settings.control_timeout_seconds))
    slowest = settings.max_bytes / settings.transfer_bytes_per_second
    return max(LONG_TASK_SECONDS, int(2 * grown), int(2 * slowest))


def visibility_seconds(settings: Settings, longest_countdown: float) -> int:
    """How long a message may be unacknowledged: its countdown, plus a short task."""
    return max(VISIBILITY_SECONDS, int(longest_countdown) + task_limit(settings, "poll") + 2 * HARD_AFTER_SOFT_SECONDS)


def out_of_time() -> tuple[type[Exception], ...]:
    """The errors that a worker's time limit raises in the middle of a task; none where Celery is not loaded."""
    loaded = sys.modules.get("billiard.exceptions")
    return (loaded.SoftTimeLimitExceeded,) if loaded is not None else ()
