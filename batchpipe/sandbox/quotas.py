"""What an account may have at the provider at once, or within a span of time, as the real one limits it."""

from __future__ import annotations

import threading
from collections import deque

from batchpipe.sandbox.batches import Batch, Batches
from batchpipe.sandbox.clock import Clock
from batchpipe.sandbox.errors import ApiError
from batchpipe.sandbox.options import ANY_MODEL, Options

_FULL = (
    "Enqueued token limit reached for {model} in organization org-sandbox. Limit: {limit:,} enqueued tokens. "
    "Please try again once some in_progress batches have been completed."
)


class _Span:
    """Calls within the last so many seconds."""

    def __init__(self, name: str, most: int | None, seconds: float, unit: str) -> None:
        self._name, self._most, self._seconds, self._unit = name, most, seconds, unit
        self._times = deque[float]()

    def take(self, now: float) -> None:
        """Count a call, or refuse it with a 429."""
        if self._most is None:
            return
        while self._times and self._times[0] <= now - self._seconds:
            self._times.popleft()
        if len(self._times) >= self._most:
            wait = max(self._times[0] + self._seconds - now, 0.001)
            message = f"Rate limit reached for {self._name}. Limit: {self._most:,} per {self._unit}."
            headers = {
                "retry-after": f"{wait:.3f}",
                "x-ratelimit-limit-requests": str(self._most),
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": f"{wait:.3f}s",
            }
            raise ApiError(429, message, type="requests", code="rate_limit_exceeded", headers=headers)
        self._times.append(now)


class Quotas:
    """Limits of the one organization that a sandbox serves. Thread-safe."""

    def __init__(self, options: Options, clock: Clock, batches: Batches) -> None:
        self._options, self._clock, self._batches = options, clock, batches
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        with self._lock:
            self.refused = 0  #: batches that failed because the queue was full
            self._creations = _Span("batch creations", self._options.creations_per_hour, 3_600.0, "hour")
            self._uploads = _Span("file uploads", self._options.uploads_per_minute, 60.0, "minute")

    def check_upload(self) -> None:
        """Count an upload; one too many is answered with 429."""
        with self._lock:
            self._uploads.take(self._clock.now())

    def check_create(self) -> None:
        """Count the creation of a batch: 429 for one too many in an hour, 400 if too many are unfinished."""
        most = self._options.batches_in_flight
        with self._lock:
            if most is not None and sum(not batch.is_final for batch in self._batches.all()) >= most:
                message = f"The limit of {most:,} unfinished batches is reached."
                raise ApiError(400, message, code="quotaExceeded")
            self._creations.take(self._clock.now())

    @property
    def limits_tokens(self) -> bool:
        """Whether the tokens of inputs must be counted."""
        return self._options.enqueued_tokens is not None

    def enqueue(self, batch: Batch, tokens: int) -> str | None:
        """Let a batch into the queue of its model, or say why not. It is in there until it ends."""
        limits = self._options.enqueued_tokens or {}
        limit = limits.get(batch.model or "", limits.get(ANY_MODEL))
        with self._lock, self._batches.lock:
            if limit is not None and self._held(batch.model) + tokens > limit:
                self.refused += 1
                return _FULL.format(model=batch.model, limit=limit)
            batch.tokens = tokens
        return None

    def enqueued(self) -> dict[str, int]:
        """Tokens in the queue, by model."""
        with self._batches.lock:
            models = {batch.model for batch in self._batches.all() if not batch.is_final and batch.tokens}
            return {model or "": self._held(model) for model in models}

    def _held(self, model: str | None) -> int:
        return sum(one.tokens for one in self._batches.all() if one.model == model and not one.is_final)
