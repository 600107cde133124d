"""How long a turn without progress and a whole Celery task may take. Both follow from the settings."""

from __future__ import annotations

import sys

from batchpipe.config.settings import Settings

#: A turn that ran into its deadline gets twice as long the next time, up to so many times the first one.
LONGEST_GROWTH = 8
#: How long prepare and merge, which stream the whole input, may go without progress.
JOB_DEADLINE_SECONDS = 3_600.0
#: The shortest limit of a task, whatever the settings say.
SHORT_TASK_SECONDS, LONG_TASK_SECONDS = 900, 86_400
#: The soft limit raises an error in the task, which then records it; the hard one ends the process.
HARD_AFTER_SOFT_SECONDS = 60
#: How long, at least, a message may be unacknowledged in Redis before it is delivered again.
VISIBILITY_SECONDS = 1_800

#: Tasks with turns that may be long: a lease ends those without progress. All others are short calls of the provider.
LONG_TASKS = ("prepare", "upload", "create", "download", "merge")

#: What a person can change if a turn, or a task, always takes too long.
REMEDIES = {
    "prepare": "faster storage, or several smaller inputs",
    "upload": "smaller shards (MAX_ROWS, MAX_BYTES), or a higher TRANSFER_TIMEOUT_SECONDS",
    "create": "a higher CONTROL_TIMEOUT_SECONDS",
    "poll": "a higher CONTROL_TIMEOUT_SECONDS",
    "download": "smaller shards (MAX_ROWS, MAX_BYTES), or a higher TRANSFER_TIMEOUT_SECONDS",
    "merge": "faster storage, or several smaller inputs",
}


def turn_deadline(settings: Settings, link: str) -> float:
    """Seconds that a turn may go without progress the first time it is tried."""
    control, transfer = settings.control_timeout_seconds, settings.transfer_timeout_seconds
    return {
        "prepare": JOB_DEADLINE_SECONDS,
        "upload": transfer + 2 * control,
        "create": 10 * control,
        "poll": 4 * control,
        "download": 3 * transfer,
        "merge": JOB_DEADLINE_SECONDS,
    }[link]


def task_limit(settings: Settings, name: str) -> int:
    """The soft time limit of a task of ours, in seconds. ``name`` without its ``batchpipe.``."""
    links = LONG_TASKS if name in LONG_TASKS else ("poll",)
    grown = LONGEST_GROWTH * max(turn_deadline(settings, link) for link in links)
    if name not in LONG_TASKS:
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
