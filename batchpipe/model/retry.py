"""When something is tried again: every policy of the pipeline, as data."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from batchpipe.model.records import LONGEST_PAUSE


@dataclass(frozen=True)
class RetryPolicy:
    """Pauses in seconds: the first, then each ``factor`` times the one before, ``longest`` at most.

    ``jitter``: each is longer or shorter by up to this part of it, so that not all retries fall in the same second.
    """

    first: float
    longest: float
    factor: float = 2.0
    jitter: float = 0.0

    def pause(self, attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """The pause after so many that came before it: 0 gives the first one."""
        return self._within(self.first * self.factor ** min(attempt, 64), uniform)

    def after(self, last: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """The pause that follows one of ``last`` seconds; 0 gives the first one."""
        return self._within(max(self.factor * last, self.first), uniform)

    def _within(self, pause: float, uniform: Callable[[float, float], float]) -> float:
        spread = uniform(1 - self.jitter, 1 + self.jitter) if self.jitter else 1.0
        return min(pause, self.longest) * spread


#: A turn failed in a way that nobody foresaw.
UNFORESEEN = RetryPolicy(first=1.0, longest=LONGEST_PAUSE)
#: Trouble of a shard that passes. Not longer: a provider that is down for a minute must not cost ten.
SHARD_TROUBLE = RetryPolicy(first=1.0, longest=60.0, jitter=0.2)
#: The same of a job, and of its receivers: each turn may read and write gigabytes before it meets the full disk.
JOB_TROUBLE = RetryPolicy(first=5.0, longest=60.0)
#: Looks for a batch or file that the key does not see.
UNSEEN = RetryPolicy(first=5.0, longest=LONGEST_PAUSE)
#: Create calls while the provider does not take the input file: a fresh one may need seconds.
FILE_NOT_READY = RetryPolicy(first=2.0, longest=LONGEST_PAUSE)
#: Uploads that the provider refuses for now: the whole file is sent each time.
UPLOAD_REFUSED = RetryPolicy(first=30.0, longest=LONGEST_PAUSE)
#: Batches that failed because the provider's queue was full, or the account had no money.
QUEUE_FULL = RetryPolicy(first=5.0, longest=LONGEST_PAUSE)
#: How long a fresh file may be "not found" before it is uploaded again.
FILE_UNFOUND = RetryPolicy(first=120.0, longest=86_400.0)
#: Messages to a queue that a worker listens on without taking any: ours may be lost, and each leaves a void one behind.
QUEUE_STUCK = RetryPolicy(first=3_600.0, longest=86_400.0)
#: A worker that its broker refuses.
BROKER_REFUSES = RetryPolicy(first=2.0, longest=10.0)

#: Pauses of a task that could not reach Redis at all, and of one in a process with wrong settings: another worker may
#: take it, or a person corrects them.
REDIS_PAUSE_SECONDS, SETTINGS_PAUSE_SECONDS = 10.0, 60.0
