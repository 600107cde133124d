"""What a history of turnarounds says: quantiles of the sketch, ends of batches and jobs, pauses, and what is late."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.model.eta import Ahead, Delay, Eta, Forecast, delay_of, in_words, length, rate_of
from batchpipe.model.pace import BINS, NO_HISTORY, RATIO, Curve, History, Rate, bin_of, days_of, edge, likely_pause
from batchpipe.model.records import Counts, JobRecord, Problem, ShardRecord, Stage, State
from batchpipe.model.stalls import stall_of

NOW = 1_000_000.0
TIMES = st.floats(min_value=0.01, max_value=2_000_000)
SOME = st.lists(TIMES, min_size=5, max_size=300)


def sketch(times: list[float]) -> Counter[int]:
    return Counter(bin_of(time) for time in times)


def history(*times: float, **more: Any) -> History:
    return History([sketch(list(times))], **more)


# -- the sketch --------------------------------------------------------------------------------------------------------


@given(TIMES)
def test_a_time_lies_in_its_bin(time: float) -> None:
    """But for the last bit where two bins meet."""
    place = bin_of(time)
    assert edge(place) <= max(time, 1.0) * (1 + 1e-9)
    assert place == BINS - 1 or time < edge(place + 1) * (1 + 1e-9)


@given(SOME, st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 0.99]))
def test_a_quantile_of_the_sketch_is_true_to_one_bin(times: list[float], part: float) -> None:
    """A fifth at most, whatever the times are."""
    found = history(*times).quantile(part)
    assert found is not None
    exact = max(sorted(times)[math.ceil(part * len(times) - 1e-9) - 1], 1.0)
    assert exact / RATIO / (1 + 1e-6) <= max(found, 1.0) <= exact * RATIO * (1 + 1e-6)


@given(st.lists(SOME, min_size=1, max_size=10), st.lists(TIMES, max_size=30))
def test_the_part_that_runs_on_never_grows(days: list[list[float]], running: list[float]) -> None:
    """From all to none, for any days and any batches in flight."""
    found = History([sketch(day) for day in days], running)
    parts = [found.alive(edge(number / 4)) for number in range(4 * BINS)]
    assert parts[0] == 1.0
    # but for the last bit of a number
    assert all(1.0 >= before >= after - 1e-12 and after >= 0.0 for before, after in pairwise(parts))


@given(SOME, TIMES, TIMES, st.none() | st.builds(Rate, st.floats(10, 1e6), st.floats(0.01, 1.0)))
def test_a_curve_rises_from_none_to_all(times: list[float], age: float, limit: float, rate: Rate | None) -> None:
    """At any age, with or without counts, within a window or not; and its inverse is one."""
    curve = history(*times).curve(age, rate).within(limit)
    points = [curve.at(second) for second in (0.0, 1.0, 60.0, 3_600.0, 86_400.0, 1e9)]
    assert all(0.0 <= before <= after <= 1.0 + 1e-9 for before, after in pairwise(points))
    assert points[-1] == 1.0
    low, high = curve.when(0.25), curve.when(0.9)
    assert 0.0 <= low <= high <= curve.last
    assert curve.at(high) >= 0.9 - 1e-6 or high == curve.last


def test_days_long_ago_weigh_less() -> None:
    """What batches take changes; the last two days count most."""
    slow_then_quick = History([sketch([60.0] * 50), {}, {}, {}, {}, sketch([6_000.0] * 50)])
    assert (slow_then_quick.quantile(0.9) or 0) < 80
    fields = {"100:took": {3: 5}, "99:took": {4: 1}, "92:took": {9: 9}, "100:queued": {1: 1}}
    assert days_of(fields, 100, "took")[:2] == [{3: 5}, {4: 1}]
    assert len(days_of(fields, 100, "took")) == 8


def test_nothing_is_said_of_less_than_five_batches_or_of_an_age_that_none_reached() -> None:
    assert not history(1, 2, 3, 4).speaks
    assert history(1, 2, 3, 4).quantile(0.5) is None
    found = history(*[60.0] * 10)
    assert (found.knows(30), found.knows(600)) == (True, False)


def test_batches_that_run_make_the_end_later() -> None:
    """Of a hundred that began together, the first ten to end are the quick ones."""
    quick = history(*[60.0] * 10)
    with_others = history(*[60.0] * 10, running=[120.0] * 30, each=3.0)
    assert quick.curve(30).when(0.5) < 60
    assert with_others.curve(30).when(0.5) > 120


def test_a_batch_is_looked_at_often_when_its_end_is_likely_and_seldom_when_not() -> None:
    """Half of these end within minutes, the others after some five hours."""
    dice = random.Random(1)
    found = history(*(dice.uniform(200, 500) for _ in range(100)), *(dice.uniform(17_000, 19_000) for _ in range(100)))
    pauses = [likely_pause(found, age) or 0.0 for age in (240, 1_200, 17_500)]
    assert pauses[0] < 90
    assert pauses[1] > 10_000
    assert pauses[2] < 300
    assert likely_pause(found, 100_000) is None
    assert likely_pause(NO_HISTORY, 0) is None


# -- ends of shards and jobs -------------------------------------------------------------------------------------------


def running_job(**fields: Any) -> JobRecord:
    return JobRecord(id="job_x", **{"stage": State.RUNNING.value, **fields})


def shard(age: float = 0.0, stage: Stage = Stage.CREATED, **fields: Any) -> ShardRecord:
    made = {"created_at": NOW - age} if stage == Stage.CREATED else {}
    return ShardRecord(job="job_x", index=0, stage=stage.value, model="m", **{**made, **fields})


def eta(known: History, *shards: ShardRecord, job: JobRecord | None = None, **more: Any) -> Eta | None:
    ahead = Ahead(Forecast(NOW, lambda model: known, **more), job or running_job())
    for one in shards:
        ahead.add(one)
    return ahead.eta()


def an_eta(*args: Any, **more: Any) -> Eta:
    found = eta(*args, **more)
    assert found is not None
    return found


SPREAD = history(*(600.0 * 1.01**number for number in range(200)))


def test_the_eta_of_a_batch_is_what_remains_of_it() -> None:
    """From now on, given that it has not ended; with the number of batches that this rests on."""
    fresh, old = an_eta(SPREAD, shard(0)), an_eta(SPREAD, shard(1_500))
    assert fresh.batches == 200
    assert NOW + 600 <= fresh.earliest <= fresh.latest <= fresh.nine_in_ten <= NOW + 6_000
    assert 0 < old.earliest - NOW < 900
    assert old.nine_in_ten < fresh.nine_in_ten


def test_a_job_ends_with_its_last_shard() -> None:
    """So many shards take longer than one; those that ended add nothing."""
    one = an_eta(SPREAD, shard())
    many = an_eta(SPREAD, *[shard()] * 50, shard(stage=Stage.COLLECTED), shard(stage=Stage.ENDED))
    mixed = an_eta(SPREAD, *[shard()] * 49, shard(300))
    assert one.nine_in_ten < mixed.nine_in_ten <= many.nine_in_ten + 1
    assert many.earliest > one.earliest
    assert eta(SPREAD, shard(stage=Stage.COLLECTED), shard(over_at=NOW)) is None


def test_a_job_of_very_many_shards_costs_a_bounded_number_of_kinds() -> None:
    dice = random.Random(2)
    ahead = Ahead(Forecast(NOW, lambda model: SPREAD), running_job())
    for _ in range(5_000):
        counts = Counts(total=1_000, completed=dice.randrange(5, 1_000), failed=0)
        ahead.add(shard(dice.uniform(20, 3_000), counts=counts, snapshot_at=NOW))
    assert len(ahead._kinds) < 500
    assert ahead.eta() is not None


def test_nothing_is_said_without_a_history_for_each_of_its_models() -> None:
    known = {"m": SPREAD}
    ahead = Ahead(Forecast(NOW, lambda model: known.get(model or "", NO_HISTORY)), running_job())
    ahead.add(shard())
    ahead.add(shard().evolve(model="new"))
    assert ahead.eta() is None


@pytest.mark.parametrize(
    "job",
    [
        running_job(stage=State.FINALIZING.value),
        running_job(hold=Problem(code="cancelled_elsewhere", message="..")),
        running_job(stage=State.PREPARING.value),
    ],
)
def test_nothing_is_said_of_a_job_that_waits_for_a_person_or_for_itself(job: JobRecord) -> None:
    assert eta(SPREAD, shard(), job=job) is None


def test_a_shard_that_waits_for_room_begins_later() -> None:
    """As much as the caller knows; nothing is said if that is not known."""
    waiting = shard(stage=Stage.PLANNED)
    assert an_eta(SPREAD, waiting).earliest == an_eta(SPREAD, shard()).earliest
    later = an_eta(SPREAD, waiting, room=lambda one: Delay(7_200.0))
    assert later.earliest == pytest.approx(an_eta(SPREAD, shard()).earliest + 7_200, abs=1)
    assert eta(SPREAD, waiting, room=lambda one: None) is None
    assert eta(SPREAD, waiting.evolve(trouble=Problem(code="token_limit", message=".."))) is None


def test_all_who_wait_in_a_line_see_it_move_at_one_pace() -> None:
    """Else the slowest of many would be said to be far later than any of them."""
    wide = history(*(60.0 * 1.1**number for number in range(60)))
    took = wide.mean()
    assert took is not None
    waiting = [shard(stage=Stage.PLANNED).evolve(index=index) for index in range(18)]
    found = an_eta(wide, *waiting, room=lambda one: delay_of(one.index + 1, 2, *took))
    last = an_eta(wide, waiting[-1], room=lambda one: delay_of(18, 2, *took))
    assert last.nine_in_ten < found.nine_in_ten < 2.5 * (last.nine_in_ten - NOW) + NOW
    assert found.latest - found.earliest > 0.2 * (found.latest - NOW)


def test_a_place_behind_batches_that_all_take_the_same_is_foreseen_to_the_second() -> None:
    assert delay_of(20, 2, 600.0, 0.0) == Delay(6_000.0, 0.0)
    assert delay_of(20, 2, 600.0, 300.0).seconds == pytest.approx(6_000.0, rel=0.02)
    spread = delay_of(1, 1, 600.0, 600.0)
    assert spread.at_pace(-1.0) < spread.seconds < 600.0 < spread.at_pace(1.0)


@given(st.lists(st.floats(min_value=2, max_value=80_000), min_size=5, max_size=200))
def test_the_mean_of_a_history_is_that_of_its_times_to_one_bin(times: list[float]) -> None:
    """What runs on counts as if it ended with the last that did."""
    found = history(*times).mean()
    assert found is not None
    assert sum(times) / len(times) / RATIO <= found[0] <= sum(times) / len(times) * RATIO + 1
    longer = history(*times, running=[max(times)] * 3).mean()
    assert longer is not None
    assert longer[0] >= found[0] - 1e-6
    assert NO_HISTORY.mean() is None


def test_answered_rows_say_more_than_the_age() -> None:
    """Nine tenths answered after an hour: minutes remain; one hundredth: hours. Also beyond all history."""
    begun: dict[str, Any] = {"in_progress_at": NOW - 3_600.0, "snapshot_at": NOW}
    near = shard(3_600, counts=Counts(total=1_000, completed=890, failed=10), **begun)
    far = shard(3_600, counts=Counts(total=1_000, completed=10, failed=0), **begun)
    wide = history(*(60.0 * 1.03**number for number in range(250)))
    assert an_eta(wide, near).latest < an_eta(wide, shard(3_600)).latest < an_eta(wide, far).latest
    assert an_eta(wide, near).latest - NOW < 1_200
    assert eta(history(*[60.0] * 20), shard(3_600)) is None
    assert an_eta(history(*[60.0] * 20), near).latest - NOW < 1_800


def test_a_rate_needs_some_rows_and_some_seconds() -> None:
    read: dict[str, Any] = {"snapshot_at": NOW, "counts": Counts(total=100, completed=4, failed=0)}
    assert rate_of(shard(100, **read)) is None
    assert rate_of(shard(5, **{**read, "counts": Counts(total=100, completed=50)})) is None
    assert rate_of(shard(100, **{**read, "counts": Counts(total=2, completed=2)})) == Rate(100.0, 1.0)
    assert rate_of(shard(100)) is None


def test_no_batch_is_said_to_run_far_beyond_its_window() -> None:
    """The provider ends it then."""
    found = an_eta(history(*[80_000.0] * 10), shard(0), job=running_job(completion_window="1h"))
    assert found.nine_in_ten == NOW + 4_200
    said = an_eta(history(*[80_000.0] * 10), shard(0).evolve(expires_at=NOW + 7_200), job=running_job())
    assert said.nine_in_ten == NOW + 7_800, "the provider's own word counts"


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ((720, 2_400, 7_200), "usually 12 to 40 min; 9 in 10 within 2 h"),
        ((40, 300, 5_000), "usually 40 s to 5 min; 9 in 10 within 84 min"),
        ((0.2, 0.4, 3), "usually about 1 s; 9 in 10 within 3 s"),
        ((6_000, 9_000, 90_000), "usually 1.7 to 2.5 h; 9 in 10 within 25 h"),
        ((200_000, 400_000, 900_000), "usually 2.3 to 4.6 days; 9 in 10 within 11 days"),
    ],
)
def test_the_words_are_those_of_people(times: tuple[float, float, float], said: str) -> None:
    assert in_words(*times) == said


@given(TIMES)
def test_a_bound_in_words_is_not_below_the_bound(seconds: float) -> None:
    """Nor far above it."""
    number, unit = length(seconds, up=True).split(" ")
    size = {"s": 1, "min": 60, "h": 3_600, "days": 86_400}[unit]
    assert float(number) * size >= seconds * 0.95 - 0.06
    assert float(number) * size <= seconds + max(size * 1.0, 1.0)


def test_the_eta_of_a_shard_is_that_of_a_job_with_nothing_else() -> None:
    found = Forecast(NOW, lambda model: SPREAD).of_shard(running_job(), shard(100))
    assert found == an_eta(SPREAD, shard(100))


def test_a_curve_that_is_delayed_or_cut_keeps_its_form() -> None:
    curve = Curve([0.0, 10.0, 20.0], [0.0, 0.5, 1.0])
    assert curve.delayed(5).when(0.5) == 15.0
    assert curve.within(10.0).when(0.9) == pytest.approx(10.0)
    assert curve.within(-5.0) is curve


# -- what is late ------------------------------------------------------------------------------------------------------

USUAL = History([{}, sketch([600.0] * 100)])


@pytest.mark.parametrize(("age", "late"), [(1_900, False), (3_500, False), (3_700, True)])
def test_a_batch_is_late_at_three_times_what_99_in_100_take_and_an_hour_at_least(age: float, late: bool) -> None:
    found = stall_of(shard(age, batch_id="batch_1"), USUAL, NOW)
    assert (found is not None) == late
    if found is not None:
        assert found.code == "batch_late"
        assert found.message.startswith("batch_1 has not ended after 62 min: 99 in 100 batches of m ended within")
        assert "batchpipe cancel job_x" in found.message


def test_a_batch_without_any_answer_is_late_earlier() -> None:
    """In progress, its rows counted, none answered."""
    silent: dict[str, Any] = {"status": "in_progress", "counts": Counts(total=5, completed=0, failed=0)}
    slow = History([{}, sketch([4_000.0] * 100)])
    assert (found := stall_of(shard(7_000, **silent), slow, NOW)) is not None
    assert found.code == "no_answers"
    assert "; 0 of its 5 rows are answered." in found.message
    assert stall_of(shard(7_000), slow, NOW) is None
    assert stall_of(shard(7_000, **{**silent, "counts": Counts(total=5, completed=1)}), slow, NOW) is None


def test_a_slow_batch_that_is_nearly_done_is_not_late() -> None:
    """Its rows tell that it ends soon."""
    read: dict[str, Any] = {"status": "in_progress", "snapshot_at": NOW}
    assert stall_of(shard(7_200, counts=Counts(total=100, completed=97), **read), USUAL, NOW) is None
    assert stall_of(shard(7_200, counts=Counts(total=100, completed=40), **read), USUAL, NOW) is not None


def test_without_a_history_only_half_a_day_without_an_answer_is_late() -> None:
    silent: dict[str, Any] = {"status": "in_progress", "counts": Counts(total=5, completed=0, failed=0)}
    for known in (NO_HISTORY, history(*[60.0] * 19)):
        assert stall_of(shard(40_000), known, NOW) is None
        assert stall_of(shard(40_000, **silent), known, NOW) is None
        assert (found := stall_of(shard(44_000, **silent), known, NOW)) is not None
        assert found.code == "no_answers"


def test_a_day_on_which_nothing_ends_does_not_make_late_usual() -> None:
    """Yesterday's batches say what is usual; if there are none, those in flight count against a hasty word."""
    stalled = History([{}, sketch([600.0] * 100)], running=[20_000.0] * 100, each=100.0)
    assert stall_of(shard(20_000), stalled, NOW) is not None
    first_day = History([sketch([60.0] * 30)], running=[4_000.0] * 100)
    assert stall_of(shard(4_000), first_day, NOW) is None
