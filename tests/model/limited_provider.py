"""A provider with a full queue: it refuses what is more than its limits, as the real one does."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchpipe.model.admission import Full


@dataclass
class Batch:
    """One at the provider."""

    id: str
    key: str
    model: str
    tokens: int
    ends_at: float
    status: str = "in_progress"


@dataclass
class Provider:
    """Counts tokens of a model in its queue; a batch that finds no room fails, after a moment or at once.

    It may also limit unfinished batches, and creations within a minute: those are refused at once.
    """

    limit: dict[str, int]
    says_limit: bool = True
    fails_at_once: bool = False
    foreign: int = 0  #: tokens of others in each queue
    most_batches: int | None = None
    per_minute: int | None = None
    batches: dict[str, Batch] = field(default_factory=dict)
    refusals: int = 0
    by_key: dict[str, str] = field(default_factory=dict)
    used: list[tuple[float, int]] = field(default_factory=list)
    made: list[float] = field(default_factory=list)

    def queued(self, model: str) -> int:
        return sum(b.tokens for b in self.batches.values() if b.status == "in_progress" and b.model == model)

    def no_room(self, model: str) -> Full:
        """A refusal for want of tokens."""
        return Full(limit=self.limit[model] if self.says_limit else None)

    def _refused(self, at: float) -> Full | None:
        alive = sum(batch.status == "in_progress" for batch in self.batches.values())
        if self.most_batches is not None and alive >= self.most_batches:
            return Full(kind="batches", limit=self.most_batches if self.says_limit else None)
        self.made = [made for made in self.made if made > at - 60.0]
        if self.per_minute is not None and len(self.made) >= self.per_minute:
            limit = 60 * self.per_minute if self.says_limit else None
            return Full(kind="creations", limit=limit, after=self.made[0] + 60.0 - at)
        self.made.append(at)
        return None

    def create(self, key: str, model: str, tokens: int, at: float, seconds: float) -> Batch | Full:
        """Full: refused at once."""
        assert key not in self.by_key, "paid twice"
        if (refused := self._refused(at)) is not None:
            self.refusals += 1
            return refused
        full = self.queued(model) + self.foreign + tokens > self.limit.get(model, 10**15)
        self.refusals += full
        if full and self.fails_at_once:
            return self.no_room(model)
        batch = Batch(f"batch_{len(self.batches)}", key, model, tokens, at + seconds)
        if full:
            batch.status, batch.ends_at = "failing", at + 3.0
        self.batches[batch.id], self.by_key[key] = batch, batch.id
        self.note(at)
        return batch

    def go_on(self, at: float) -> None:
        for batch in self.batches.values():
            if batch.status in ("in_progress", "failing") and batch.ends_at <= at:
                batch.status = "completed" if batch.status == "in_progress" else "failed"
                self.note(batch.ends_at)

    def note(self, at: float) -> None:
        alive = [b.tokens for b in self.batches.values() if b.status == "in_progress"]
        self.used.append((at, sum(alive)))
