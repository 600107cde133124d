"""When a shard and a job are likely to end, from the histories of ``model/pace``. Pure: no claim without a history.

What is said is about the time that remains, from now on. Further rounds, in which failed rows are sent again, are not
foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from batchpipe.model.pace import LEAST_ANSWERED, LEAST_SECONDS, Curve, History, Rate, bin_of
from batchpipe.model.records import JobRecord, ShardRecord, Stage, State, window_end

#: The parts of batches that have ended at the two ends of "usually", and by the bound.
USUALLY, BOUND = (0.25, 0.75), 0.9
#: Fields of a shard that its ETA needs, as they are stored.
FORESEEN = (
    *("model", "counts", "trouble", "intent_at", "made_at", "created_at"),
    *("in_progress_at", "snapshot_at", "over_at", "waits_since", "expires_at"),
)
#: How many kinds of shards of a job are told apart; further ones are taken for batches of their age alone.
MOST_KINDS = 300
#: How a line may move, as all who wait in it see it: so many spreads from its usual pace, and how likely that is.
PACES = ((-math.sqrt(3.0), 1 / 6), (0.0, 2 / 3), (math.sqrt(3.0), 1 / 6))
#: A batch that did not end in its window is expired by the provider soon after, in seconds.
EXPIRING_SECONDS = 600.0
_STEPS = 60


class Eta(msgspec.Struct, frozen=True, kw_only=True):
    """When something ends, as unix seconds: usually between two times, and nine in ten by a third."""

    earliest: float
    latest: float
    nine_in_ten: float
    batches: int  #: that ended in the last days, on which it rests
    text: str  #: "usually 12 to 40 min; 9 in 10 within 2 h": the time that remains


class Delay(NamedTuple):
    """In how many seconds a shard is sent. ``spread``: the deviation of their logarithm, which all who wait share."""

    seconds: float = 0.0
    spread: float = 0.0

    def at_pace(self, pace: float) -> float:
        """The seconds where the line is so many spreads slower than it usually is."""
        return self.seconds * math.exp(pace * self.spread)


def delay_of(place: int, places: int, mean: float, deviation: float) -> Delay:
    """How long the ``place``-th of a line waits where ``places`` batches run, one of them for so many seconds."""
    seconds, spread = place * mean / places, math.sqrt(place) * deviation / places
    variance = math.log1p((spread / seconds) ** 2) if seconds > 0.0 else 0.0
    return Delay(seconds * math.exp(-variance / 2), math.sqrt(variance))


def unless_in_trouble(shard: ShardRecord) -> Delay | None:
    """It waits for nothing but a worker; a shard in trouble for nobody knows how long."""
    return None if shard.trouble is not None else Delay()


@dataclass(frozen=True)
class Forecast:
    """What is needed to foresee ends: the ``history`` of a model; and how long a shard is not sent, which waits for
    ``room``, None where that is not known."""

    now: float
    history: Callable[[str | None], History]
    room: Callable[[ShardRecord], Delay | None] = unless_in_trouble

    def of_shard(self, job: JobRecord, shard: ShardRecord) -> Eta | None:
        """None: it has ended, or nothing can be said."""
        ahead = Ahead(self, job)
        ahead.add(shard)
        return ahead.eta()


class Ahead:
    """What of a job is still to come: its shards are added one by one, for there may be 100,000."""

    def __init__(self, forecast: Forecast, job: JobRecord) -> None:
        self._forecast, self._job = forecast, job
        self._kinds: dict[tuple[str | None, int, int, int], tuple[tuple[Curve, ...], float]] = {}
        self._batches: int | None = None
        self._silent = job.state is not State.RUNNING or job.hold is not None

    def add(self, shard: ShardRecord, count: float = 1.0) -> None:
        """A shard with its stage and the fields of ``FORESEEN``; ``count``: for how many of its kind it stands."""
        if self._silent or _is_over(shard):
            return
        age, delay = self._age(shard), self._delay(shard)
        history = self._forecast.history(shard.model)
        rate = rate_of(shard)
        if delay is None or not history.speaks or (rate is None and not history.knows(age)):
            self._silent = True
            return
        kind = (shard.model, bin_of(age) if age else -1, bin_of(delay.seconds) if delay.seconds else -1, _kind_of(rate))
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS and rate is not None and history.knows(age):
            rate, kind = None, (*kind[:3], -1)
        known = self._kinds.get(kind)
        curves = known[0] if known else self._curves(shard, history, age, delay, rate)
        self._kinds[kind] = curves, (known[1] if known else 0.0) + count
        self._batches = min(history.ended, self._batches if self._batches is not None else history.ended)

    def _age(self, shard: ShardRecord) -> float:
        if shard.stage != Stage.CREATED:
            return 0.0
        return max(self._forecast.now - shard.born_at, 0.0) if shard.born_at is not None else 0.0

    def _delay(self, shard: ShardRecord) -> Delay | None:
        return Delay() if shard.stage == Stage.CREATED else self._forecast.room(shard)

    def _curves(
        self, shard: ShardRecord, history: History, age: float, delay: Delay, rate: Rate | None
    ) -> tuple[Curve, ...]:
        """For each pace of its line; only one where it waits in none."""
        read = self._forecast.now - (shard.snapshot_at or self._forecast.now)
        born = self._forecast.now - age
        said = shard.expires_at if shard.stage == Stage.CREATED else None
        rest = window_end(born, self._job.completion_window, said) + EXPIRING_SECONDS - self._forecast.now
        curve = history.curve(age, rate, max(read, 0.0)).within(rest)
        paces = PACES if delay.spread else ((0.0, 1.0),)
        return tuple(curve.delayed(delay.at_pace(pace)) for pace, _ in paces)

    def eta(self) -> Eta | None:
        """None: nothing is to come, or nothing can be said."""
        if self._silent or not self._kinds or self._batches is None:
            return None
        low, high = (self._when(part) for part in USUALLY)
        most = self._when(BOUND)
        now = self._forecast.now
        return Eta(
            earliest=round(now + low, 3),
            latest=round(now + high, 3),
            nine_in_ten=round(now + most, 3),
            batches=self._batches,
            text=in_words(low, high, most),
        )

    def _when(self, part: float) -> float:
        """The seconds after which all have ended with this probability."""
        if len(self._kinds) == 1:
            curves, count = next(iter(self._kinds.values()))
            if len(curves) == 1:
                return curves[0].when(part ** (1.0 / count))
        low, high = 0.0, max(curve.last for curves, _ in self._kinds.values() for curve in curves)
        wanted = math.log(part)
        for _ in range(_STEPS):
            middle = math.sqrt(low * high) if low > 1.0 else (low + high) / 2
            if self._all_done(middle) >= wanted:
                high = middle
            else:
                low = middle
            if high - low <= 0.001 * high:
                break
        return high

    def _all_done(self, seconds: float) -> float:
        """The logarithm of the probability that all have ended by then, as if each went its own way; but those that
        wait in one line wait for the same batches."""
        if not self._waits:
            return self._done_at(seconds, 0)
        found = sum(likely * math.exp(self._done_at(seconds, number)) for number, (_, likely) in enumerate(PACES))
        return math.log(found) if found > 0.0 else -math.inf

    def _done_at(self, seconds: float, pace: int) -> float:
        """The same at one pace of the line."""
        total = 0.0
        for curves, count in self._kinds.values():
            done = curves[pace if len(curves) > 1 else 0].at(seconds)
            if done <= 0.0:
                return -math.inf
            total += count * math.log(done)
        return total

    @property
    def _waits(self) -> bool:
        return any(len(curves) > 1 for curves, _ in self._kinds.values())


def _is_over(shard: ShardRecord) -> bool:
    """Its batch has ended: what is left takes seconds."""
    return shard.stage in (Stage.COLLECTED, Stage.ENDED) or (shard.stage == Stage.CREATED and shard.over_at is not None)


def rate_of(shard: ShardRecord) -> Rate | None:
    """How fast its batch answers; None if its counts do not tell yet."""
    begun = max(shard.in_progress_at or 0.0, shard.born_at or 0.0)
    total, read = shard.counts.total or 0, shard.snapshot_at
    answered = (shard.counts.completed or 0) + (shard.counts.failed or 0)
    if shard.stage != Stage.CREATED or not begun or read is None or not total:
        return None
    if answered < min(LEAST_ANSWERED, total) or read - begun < LEAST_SECONDS:
        return None
    return Rate(read - begun, min(answered / total, 1.0))


def _kind_of(rate: Rate | None) -> int:
    """Rates that foretell about the same rest are one kind."""
    if rate is None:
        return -1
    return bin_of(rate.rest) * 4 + int(rate.part * 3.99)


def eta_view(eta: Eta | None) -> dict[str, Any] | None:
    """For JSON: ``{"earliest", "latest", "nine_in_ten", "batches", "text"}``; times are unix seconds."""
    return msgspec.structs.asdict(eta) if eta is not None else None


# -- in words ----------------------------------------------------------------------------------------------------------

_UNITS = ((1.0, "s", 90.0), (60.0, "min", 5_400.0), (3_600.0, "h", 172_800.0), (86_400.0, "days", math.inf))


def in_words(low: float, high: float, bound: float) -> str:
    """The remaining time as people say it: usually between two times, nine in ten within a third (seconds)."""
    return f"usually {_range(low, high)}; 9 in 10 within {length(bound, up=True)}"


def length(seconds: float, *, up: bool = False) -> str:
    """A time in the unit that people would use; ``up``: not less than it is."""
    return " ".join(_parts(seconds, up=up))


def _range(low: float, high: float) -> str:
    (first, unit), (last, other) = _parts(low), _parts(high)
    if unit != other:
        return f"{first} {unit} to {last} {other}"
    return f"about {last} {other}" if first == last else f"{first} to {last} {other}"


def _parts(seconds: float, *, up: bool = False) -> tuple[str, str]:
    size, unit = next((size, unit) for size, unit, most in _UNITS if seconds < most)
    number = max(seconds / size, 1.0 if unit == "s" else 0.0)
    digits = 1 if number < 9.95 and unit in ("h", "days") else 0
    factor = 10**digits
    rounded = (math.ceil(number * factor - 0.05) if up else round(number * factor)) / factor
    return f"{rounded:.{digits}f}".removesuffix(".0"), unit
