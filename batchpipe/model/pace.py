"""How long batches take: what the turnarounds of a model say about one that runs, and about a job of many.

A history is a sketch: counts in logarithmic bins (``pace_bin`` in common.lua), by day, so a time that is read from it
is true to a tenth. Batches that have not ended count, too: those that end first are the short ones. All pure.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: A bin is so many times as wide as the one before; the last one has no end.
RATIO, BINS = 1.2, 81
#: Weights of a sketch's days, from today on.
DAY_WEIGHTS = (1.0, 1.0, 0.5, 0.25, 0.125, 0.06, 0.03, 0.015)
#: Nothing is said of what fewer batches have shown; nor of an age that fewer have reached.
LEAST_ENDED, LEAST_OLDER = 5, 2.0
#: Between two looks a batch ends with this probability.
LIKELY_END = 0.1
#: How far the rest of a batch that its answered rows foretell may be from the truth, as a logarithm: at the end of its
#: rows, and at their beginning.
RATE_ERROR, EARLY_RATE_ERROR = 0.4, 0.9
#: Rows and seconds before a rate is one.
LEAST_ANSWERED, LEAST_SECONDS = 5, 10.0
_LOG = math.log(RATIO)
_DAY = 86_400.0


def bin_of(seconds: float) -> int:
    """The bin of a time, as the script counts it."""
    return min(int(math.log(max(seconds, 1.0)) / _LOG), BINS - 1)


def edge(number: float) -> float:
    """Where a bin begins, in seconds; the first one at 0."""
    return RATIO**number if number > 0 else 0.0


@dataclass(frozen=True)
class Rate:
    """What the counts of a running batch say, when they were read: it has run so long, and answered this part of it."""

    seconds: float
    part: float  #: 0 to 1

    @property
    def rest(self) -> float:
        """How many more seconds it foretells; files are written after the last row."""
        return self.seconds * (1.0 - self.part + 0.02) / self.part

    def weight(self, rest: float) -> float:
        """How well it agrees with a batch that ends after ``rest`` more seconds; 1 at best."""
        expected = self.rest
        error = RATE_ERROR + (EARLY_RATE_ERROR - RATE_ERROR) * (1.0 - self.part)
        return math.exp(-0.5 * (math.log(max(rest, 0.5) / max(expected, 0.5)) / error) ** 2)


class Curve:
    """How likely a batch has ended after so many seconds from now: points, with straight lines between them."""

    def __init__(self, seconds: Sequence[float], done: Sequence[float]) -> None:
        self._seconds, self._done = seconds, done

    def at(self, seconds: float) -> float:
        """The probability that it has ended by then."""
        place = bisect_right(self._seconds, seconds)
        if place == 0:
            return 0.0
        if place == len(self._seconds):
            return 1.0
        low, high = self._seconds[place - 1], self._seconds[place]
        part = (seconds - low) / (high - low)
        return self._done[place - 1] + part * (self._done[place] - self._done[place - 1])

    def when(self, probability: float) -> float:
        """The seconds after which it has ended with this probability."""
        place = min(max(bisect_left(self._done, probability), 1), len(self._done) - 1)
        low, high = self._done[place - 1], self._done[place]
        part = min((probability - low) / (high - low), 1.0) if high > low else 1.0
        return self._seconds[place - 1] + max(part, 0.0) * (self._seconds[place] - self._seconds[place - 1])

    @property
    def last(self) -> float:
        """After so many seconds it has ended for certain."""
        return self._seconds[-1]

    def within(self, seconds: float) -> Curve:
        """The same of a batch that is ended after so many seconds, if it has not ended before; without effect if that
        is past."""
        if not 0.0 < seconds < self.last:
            return self
        place = bisect_left(self._seconds, seconds)
        return Curve([*self._seconds[:place], seconds, seconds], [*self._done[:place], self.at(seconds), 1.0])

    def delayed(self, seconds: float) -> Curve:
        """That of a batch which begins so much later."""
        return Curve([0.0, *(at + seconds for at in self._seconds)], [0.0, *self._done]) if seconds > 0 else self


class History:
    """The turnarounds of one model of an account, in the last days.

    ``days``: for today, yesterday, .., the batches that ended by bin. ``running``: ages in seconds of batches that have
    not ended, each of which stands for ``each`` of them.
    """

    def __init__(
        self, days: Sequence[Mapping[int, int]] = (), running: Iterable[float] = (), each: float = 1.0
    ) -> None:
        counts = [sum(day.values()) for day in days]
        self.ended = sum(counts)
        self._earlier = _added(days[1:], [1.0] * len(DAY_WEIGHTS))
        self._plain = _added(days, [1.0] * len(DAY_WEIGHTS))
        weighted = list(zip(counts, DAY_WEIGHTS, strict=False))
        total, squares = sum(n * w for n, w in weighted), sum(n * w * w for n, w in weighted)
        scale = total / squares if squares else 1.0  # so the bins add up to the number of batches that they are worth
        self._bins = _added(days, [weight * scale for weight in DAY_WEIGHTS])
        self._running = [0.0] * BINS
        for age in running:
            self._running[bin_of(age)] += each
        # one more that has not ended at all: what was never seen may still come
        self._alive = _survival(self._bins, [n * scale for n in self._running], 1.0)
        self._last = max((b for b in range(BINS) if self._bins[b] or self._running[b]), default=0) + 1

    @property
    def speaks(self) -> bool:
        """Whether it is enough to say anything at all."""
        return self.ended >= LEAST_ENDED

    def knows(self, age: float) -> bool:
        """Whether it says anything of batches that have run so long, in seconds."""
        return self.speaks and sum(self._bins[bin_of(age) :]) >= LEAST_OLDER

    def alive(self, age: float) -> float:
        """The part of batches that run longer than so many seconds. Beyond all that were seen it falls like 1/age."""
        if age >= edge(self._last):
            return self._alive[self._last] * edge(self._last) / age
        place = bin_of(age)
        low = edge(place)
        part = (age - low) / (edge(place + 1) - low)
        return self._alive[place] + part * (self._alive[place + 1] - self._alive[place])

    def curve(self, age: float = 0.0, rate: Rate | None = None, since: float = 0.0) -> Curve:
        """When a batch of this age ends, given that it has not ended yet; ``rate``, read ``since`` seconds ago, says
        more of it."""
        age = max(age, 0.0)
        edges = [age, *(edge(b) for b in range(bin_of(age) + 1, BINS) if edge(b) > age)]
        masses = []
        for low, high in pairwise(edges):
            mass = max(self.alive(low) - self.alive(high), 0.0)
            masses.append(mass * rate.weight((low + high) / 2 - age + since) if rate is not None else mass)
        beyond = 0.0 if rate is not None else self.alive(edges[-1])
        total = sum(masses) + beyond
        if total <= 0.0:  # the rate agrees with nothing that was ever seen
            return Curve([0.0, edges[-1]], [0.0, 1.0])
        done, points = 0.0, [0.0]
        for mass in masses:
            done += mass / total
            points.append(done)
        return Curve([at - age for at in edges], points)

    def quantile(self, part: float) -> float | None:
        """The seconds within which this part of the batches of the last days has ended; None where that is not known:
        no history, or too many that have not ended."""
        return _quantile(_survival(self._bins, self._running, 0.0), part) if self.speaks else None

    def mean(self) -> tuple[float, float] | None:
        """How long a batch takes on average, in seconds, and the deviation from that; None: not known."""
        if not self.speaks:
            return None
        alive = _survival(self._bins, self._running, 0.0)
        ended = [before - after for before, after in pairwise(alive)]
        middles = [(edge(number) + edge(number + 1)) / 2 for number in range(BINS)]
        rest = max(1.0 - sum(ended), 0.0)  # of those that run still, as if they ended where the last one did
        ended[self._last - 1] += rest
        mean = sum(part * middle for part, middle in zip(ended, middles, strict=True))
        square = sum(part * middle**2 for part, middle in zip(ended, middles, strict=True))
        return mean, math.sqrt(max(square - mean**2, 0.0))

    def normal(self, part: float) -> float | None:
        """The same of the batches that ended, without those that run: a day on which nothing ends says nothing about
        what is usual. Of the days before today if there were enough; else None if more than a tenth has not ended:
        those that end first are the quick ones."""
        least = 4 * LEAST_ENDED
        if sum(self._earlier) >= least:
            return _quantile(_survival(self._earlier, _NONE, 0.0), part)
        if self.ended < least or _quantile(_survival(self._plain, self._running, 0.0), 0.9) is None:
            return None
        return _quantile(_survival(self._plain, _NONE, 0.0), part)


_NONE = [0.0] * BINS


def _added(days: Sequence[Mapping[int, int]], weights: Sequence[float]) -> list[float]:
    bins = [0.0] * BINS
    for day, weight in zip(days, weights, strict=False):
        for number, count in day.items():
            bins[min(max(number, 0), BINS - 1)] += count * weight
    return bins


def _survival(ended: Sequence[float], running: Sequence[float], more: float) -> list[float]:
    """The part that runs on at the beginning of each bin (Kaplan and Meier; those that run count half in their bin)."""
    at_risk, alive, found = sum(ended) + sum(running) + more, 1.0, [1.0]
    for gone, still in zip(ended, running, strict=True):
        exposed = at_risk - still / 2
        alive *= max(1.0 - gone / exposed, 0.0) if exposed > 0.0 else 1.0
        at_risk -= gone + still
        found.append(alive)
    return found


def _quantile(alive: Sequence[float], part: float) -> float | None:
    wanted = 1.0 - part + 1e-9
    for number, (before, after) in enumerate(pairwise(alive)):
        if after <= wanted:
            low, high = edge(number), edge(number + 1)
            return low + (high - low) * min((before - wanted) / (before - after), 1.0) if before > after else low
    return None


def likely_pause(history: History, age: float) -> float | None:
    """In how many seconds a batch of this age has ended with ``LIKELY_END``: when to look again. None: not known."""
    return history.curve(age).when(LIKELY_END) if history.knows(age) else None


def days_of(fields: Mapping[str, Mapping[int, int]], today: int, kind: str) -> list[Mapping[int, int]]:
    """The days of a sketch, from today on: ``fields`` are those of its hash, ``DAY:kind``."""
    return [fields.get(f"{today - back}:{kind}", {}) for back in range(len(DAY_WEIGHTS))]


def today_of(now: float) -> int:
    """The day, as the script numbers it."""
    return int(now // _DAY)


#: That of which nothing is known.
NO_HISTORY = History()
