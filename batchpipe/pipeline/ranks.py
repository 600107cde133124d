"""How many batches of others lie between two of ours in an account's list, as far as earlier walks have seen. Pure.

A list is immutable but at its head, so what one look has learned the next one can plan with. Times are the provider's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Stretches that are remembered; beyond, the finest are joined.
MOST_STRETCHES = 200

#: The head grows as it did over so many seconds before it was read.
_HEAD_SECONDS = 300.0

#: newest time, oldest time, batches that nobody looks for, batches of ours in flight
Stretch = tuple[float, float, float, float]


class Ranks:
    """Stretches of the list that do not overlap, newest first."""

    def __init__(self, stretches: Iterable[Sequence[float]] = (), read_at: float | None = None) -> None:
        """``read_at``: when the head of the list was last read, in our time."""
        self.read_at = read_at
        self.stretches: list[Stretch] = []
        for newest, oldest, others, ours in stretches:
            self.stretches.append((float(newest), float(oldest), float(others), float(ours)))

    def add(self, newest: float, oldest: float, others: int, ours: int) -> None:
        """A page was read: from the time of the page before it, or of its first batch, to that of its last one."""
        if newest < oldest:
            return  # not newest first: such a list is read whole
        kept = [part for stretch in self.stretches for part in _without(stretch, newest, oldest)]
        self.stretches = sorted([*kept, (newest, oldest, float(others), float(ours))], reverse=True)

    def others_between(self, newer: float, older: float) -> float:
        """How many batches of others lie between one of ours made at ``older`` and a place further up, at ``newer``.

        What was never read counts as nothing.
        """
        found = 0.0
        for newest, oldest, others, ours in self.stretches:
            length = newest - oldest
            if length <= 1.0:
                if older < newest and oldest < newer:
                    found += others
                elif newer <= newest and oldest <= older:  # both in one second: spread evenly
                    found += others / (ours + 1.0)
            else:
                found += others * max(min(newest, newer) - max(oldest, older), 0.0) / length
        return found

    def others_above(self, made: float, now: float) -> float:
        """How many batches of others lie above one of ours: those that were there, and those that have come since."""
        if not self.stretches or self.read_at is None:
            return 0.0
        newest = self.stretches[0][0]
        lately = self.others_between(newest + 1.0, newest - _HEAD_SECONDS)
        return self.others_between(newest + 1.0, made) + lately * max(now - self.read_at, 0.0) / _HEAD_SECONDS

    def dump(self) -> list[Stretch]:
        """At most so many stretches, those that are too many joined with their neighbours."""
        found = self.stretches
        while len(found) > MOST_STRETCHES:
            fewer = _halved(found)
            if len(fewer) == len(found):
                return found[:MOST_STRETCHES]
            found = fewer
        return found


def _halved(found: list[Stretch]) -> list[Stretch]:
    """Each two neighbours that touch are one."""
    joined: list[Stretch] = []
    at = 0
    while at < len(found):
        here = found[at]
        if at + 1 < len(found) and found[at + 1][0] >= here[1] - 1.0:
            there = found[at + 1]
            joined.append((here[0], there[1], here[2] + there[2], here[3] + there[3]))
            at += 2
        else:
            joined.append(here)
            at += 1
    return joined


def _without(stretch: Stretch, newest: float, oldest: float) -> list[Stretch]:
    """What is left of a stretch outside of another one."""
    top, bottom, others, ours = stretch
    if bottom >= newest and not (top == bottom == newest):
        return [stretch]
    if top <= oldest and not (top == bottom == oldest):
        return [stretch]
    length = top - bottom
    if length <= 0.0:
        return []
    parts = [(top, newest), (oldest, bottom)]
    return [(a, b, others * (a - b) / length, ours * (a - b) / length) for a, b in parts if a - b > 0.0]
