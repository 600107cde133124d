"""When schedules run, over daylight saving too; what their placeholders become; what is refused when they are read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchpipe.config.loading import load_settings
from batchpipe.config.settings import Settings
from batchpipe.config.site_values import SiteSettings
from batchpipe.errors import SettingsError
from batchpipe.model.schedule import ALIASES, PLACEHOLDERS, Schedule
from batchpipe.tasks.app import beat_schedule

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
#: The nights in which the clock goes forward and back.
SPRING = {BERLIN: "2026-03-29", NEW_YORK: "2026-03-08"}
AUTUMN = {BERLIN: "2026-10-25", NEW_YORK: "2026-11-01"}


def schedule(crontab: str = "0 2 * * *", timezone: str = "UTC", **fields: Any) -> Schedule:
    return Schedule(crontab=crontab, timezone=timezone, **{"input": "in.jsonl", **fields})


def night(plan: Schedule, day: str, hours: range = range(24)) -> list[str]:
    """The runs within these local hours of a day."""
    start = datetime.fromisoformat(day).replace(tzinfo=plan.zone)
    found = plan.between(start - timedelta(seconds=1), start + timedelta(hours=23), 10_000)
    return [f"{at:%H:%M%z}" for at in found if at.hour in hours]


# -- daylight saving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zone", "summer"), [(BERLIN, "+0200"), (NEW_YORK, "-0400")])
def test_a_fixed_time_that_spring_leaves_out_runs_right_after_the_gap(zone: str, summer: str) -> None:
    assert night(schedule("30 2 * * *", zone), SPRING[zone]) == [f"03:00{summer}"]
    assert night(schedule("0 2 * * *", zone), SPRING[zone]) == [f"03:00{summer}"]
    assert night(schedule("0 3 * * *", zone), SPRING[zone]) == [f"03:00{summer}"]


def test_times_that_fall_together_after_the_gap_are_one_run() -> None:
    assert night(schedule("0,30 2,3 * * *", BERLIN), SPRING[BERLIN]) == ["03:00+0200", "03:30+0200"]


@pytest.mark.parametrize(
    ("zone", "crontab", "once"),
    [
        (BERLIN, "30 2 * * *", "02:30+0200"),
        (NEW_YORK, "30 1 * * *", "01:30-0400"),
        (BERLIN, "0 3 * * *", "03:00+0100"),
        (NEW_YORK, "0 3 * * *", "03:00-0500"),
        (NEW_YORK, "30 2 * * *", "02:30-0500"),
    ],
)
def test_a_fixed_time_runs_once_in_the_night_that_has_it_twice(zone: str, crontab: str, once: str) -> None:
    assert night(schedule(crontab, zone), AUTUMN[zone]) == [once]


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK])
def test_every_quarter_of_an_hour_goes_by_the_real_time(zone: str) -> None:
    """No run in the hour that spring leaves out, two rounds through the hour that autumn has twice."""
    plan = schedule("*/15 * * * *", zone)
    for day in (SPRING[zone], AUTUMN[zone]):
        start = datetime.fromisoformat(day).replace(tzinfo=plan.zone).astimezone(UTC)
        found = plan.between(start, start + timedelta(hours=8), 10_000)
        assert [at.timestamp() for at in found] == [
            (start + n * timedelta(minutes=15)).timestamp() for n in range(1, 33)
        ]
    twice = 2 if zone == BERLIN else 1
    assert len(night(plan, AUTUMN[zone], range(twice, twice + 1))) == 8
    assert night(plan, SPRING[zone], range(2, 3)) == []


@pytest.mark.parametrize("crontab", ["30 2 * * *", "*/15 * * * *", "0 */2 * * *", "@daily", "5 1-3 * * *"])
@pytest.mark.parametrize("day", [SPRING[BERLIN], AUTUMN[BERLIN]])
def test_wherever_one_begins_to_look_the_runs_are_the_same(crontab: str, day: str) -> None:
    """Nothing twice and nothing left out, also when the last look was within the doubled hour or the gap."""
    plan = schedule(crontab, BERLIN)
    start = datetime.fromisoformat(day).replace(tzinfo=plan.zone).astimezone(UTC) - timedelta(hours=1)
    end = start + timedelta(hours=30)
    whole = plan.between(start, end, 10_000)
    for minutes in range(0, 8 * 60, 5):
        cut = start + timedelta(minutes=minutes)
        assert plan.between(start, cut, 10_000) + plan.between(cut, end, 10_000) == whole


def test_the_newest_of_a_long_time_are_found() -> None:
    end = datetime(2026, 1, 1, tzinfo=UTC)
    found = schedule("* * * * *").between(datetime(2020, 1, 1, tzinfo=UTC), end, 3)
    assert found == [end - timedelta(minutes=2), end - timedelta(minutes=1), end]
    assert schedule("@yearly").between(datetime(2020, 1, 1, tzinfo=UTC), end, 100) == [
        datetime(year, 1, 1, tzinfo=UTC) for year in range(2021, 2027)
    ]


@pytest.mark.parametrize("alias", ALIASES)
def test_the_short_forms_of_cron_are_known(alias: str) -> None:
    start = datetime(2026, 5, 13, 12, 30, tzinfo=UTC)
    assert next(schedule(alias).after(start)) == next(schedule(ALIASES[alias]).after(start))


# -- placeholders --------------------------------------------------------------------------------------------------


def test_placeholders_are_the_local_time_of_the_run() -> None:
    template = "{date} {time} {datetime} {year} {month} {day} {hour} {minute} {yesterday} {week} {name} {{x}}"
    plan = schedule(timezone=NEW_YORK, name=template)
    assert plan.fill(template, "nightly", datetime(2027, 1, 1, 3, 4, 5, tzinfo=UTC)) == (
        "2026-12-31 2204 20261231T2204-0500 2026 12 31 22 04 2026-12-30 2026-W53 nightly {x}"
    )


def test_the_doubled_hour_of_autumn_has_two_default_keys() -> None:
    plan = schedule("@hourly", BERLIN)
    runs = list(plan.between(datetime(2026, 10, 24, 23, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC), 9))
    assert [plan.fill(plan.key, "h", at) for at in runs] == [
        "schedule-h-20261025T0200+0200",
        "schedule-h-20261025T0200+0100",
    ]


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"crontab": "61 * * * *"}, "schedules.nightly.crontab: '61 * * * *' is no crontab: bad minute"),
        (
            {"crontab": "@reboot"},
            "schedules.nightly.crontab: '@reboot' is not known; of the short forms there are @year",
        ),
        ({"crontab": "*/5 * * * * *"}, "schedules.nightly.crontab: '*/5 * * * * *' must have five fields"),
        ({"crontab": "0 0 30 2 *"}, "schedules.nightly.crontab: '0 0 30 2 *' is no crontab: bad day-of-month"),
        ({"crontab": "* * */20 * 1L"}, "schedules.nightly.crontab: '* * */20 * 1L' never comes true"),
        ({"timezone": "Mars/Olympus"}, "schedules.nightly.timezone: no time zone 'Mars/Olympus' is known here"),
        ({"timezone": "../../etc/passwd"}, "schedules.nightly.timezone: no time zone"),
        ({"input": "{user}.jsonl"}, "schedules.nightly.input: {user} is no placeholder; there are {date}"),
        ({"output": "{date:%d}"}, "schedules.nightly.output: {date:%d} is no placeholder"),
        ({"output": "{}"}, "schedules.nightly.output: {} is no placeholder"),
        ({"name": "{date"}, "schedules.nightly.name: '{date'"),
        ({"key": "nightly"}, "schedules.nightly.key: needs one of {date}, {datetime}"),
        ({"key": "nightly-{hour}"}, "schedules.nightly.key: needs one of {date}, {datetime}"),
        ({"missed": "some"}, "schedules.nightly.missed: must be latest, all or skip"),
        ({"cron": "x"}, "schedules.nightly.cron: there is no such setting; did you mean crontab?"),
        ({"attempts": 0}, "schedules.nightly.attempts: must be a whole number from 1 to 100"),
    ],
)
def test_a_wrong_schedule_is_refused_in_one_line_that_names_it(fields: dict[str, str], complaint: str) -> None:
    wanted = {"crontab": "@daily", "input": "in.jsonl", **fields}
    write("[schedules.nightly]\n" + "".join(f"{name} = {value!r}\n" for name, value in wanted.items()))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("redis_url = 'redis://x'", "redis_url: only [schedules.NAME] tables belong here"),
        ("[schedules.x]\ninput = 'x'\n", "schedules.x.crontab: is missing"),
        ("[schedules.'a b']\ncrontab='@daily'\ninput='x'", "schedules: 'a b' is no name"),
        ("[schedules", "batchpipe.toml: cannot be read: "),
        ("schedules = 3", "schedules: must have names with their values, and is one value"),
        ("[schedules]\nx = 3", "schedules.x: must have names with their values, and is one value"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, complaint: str) -> None:
    write(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert complaint in str(caught.value)


# -- where schedules come from -------------------------------------------------------------------------------------


def write(text: str, path: str = "batchpipe.toml") -> Path:
    file = Path(path)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_paths_in_the_file_are_relative_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a worker was started; braces in the folder's name are no placeholders."""
    text = '[schedules.a]\ncrontab = "@daily"\ninput = "in/{date}.jsonl"\noutput = "%s"\n'
    monkeypatch.setenv("BATCHPIPE_CONFIG", "{etc}/our.toml")
    at = datetime(2026, 1, 2, tzinfo=UTC)
    for output, wanted in (
        ("out", f"{tmp_path}/{{etc}}/out"),
        ("s3://b/x", "s3://b/x"),
        ("/abs", "/abs"),
        ("~/x", "~/x"),
    ):
        write(text % output, "{etc}/our.toml")
        plan = load_settings().schedules["a"]
        assert plan.fill(plan.output or "", "a", at) == wanted
    assert plan.fill(plan.input, "a", at) == f"{tmp_path}/{{etc}}/in/2026-01-02.jsonl"


def test_a_named_file_must_exist_and_the_usual_one_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().schedules == {}
    monkeypatch.setenv("BATCHPIPE_CONFIG", "other.toml")
    with pytest.raises(SettingsError, match=r"BATCHPIPE_CONFIG: there is no file other\.toml"):
        load_settings()


def test_a_site_may_have_them_in_its_own_settings() -> None:
    """With field names in capitals or not; an error is told in the site's words."""
    plan = {"CRONTAB": "@daily", "input": "s3://bucket/in.jsonl"}
    found = load_settings(given=SiteSettings({"SCHEDULES": {"Nightly": plan}}, str)).schedules
    assert found == {"Nightly": schedule("@daily", input="s3://bucket/in.jsonl")}
    with pytest.raises(SettingsError) as caught:
        load_settings(given=SiteSettings({"SCHEDULES": {"n": plan | {"TIMEZONE": "X"}}}, "BATCHPIPE[{!r}]".format))
    assert str(caught.value).startswith("BATCHPIPE['SCHEDULES']['n']['timezone']: no time zone 'X'")


def test_beat_looks_for_due_schedules_only_where_there_are_any() -> None:
    without = Settings()
    assert list(beat_schedule(without)) == ["batchpipe-sweep"]
    entry = beat_schedule(without.model_copy(update={"schedules": {"a": schedule()}, "queue": "q"}))[
        "batchpipe-schedules"
    ]
    assert entry == {"task": "batchpipe.schedules", "schedule": 15, "options": {"queue": "q", "expires": 60}}


# -- the page ------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "cron.md").read_text(encoding="utf-8")


def test_what_the_page_shows_can_be_read() -> None:
    """Its file, and its settings of a site, are the same schedule."""
    [text] = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    site: dict[str, Any] = {}
    exec(code, site)
    theirs = load_settings(given=SiteSettings(site["BATCHPIPE"], str)).schedules["nightly"]
    write(text)
    ours = load_settings().schedules["nightly"]
    assert (ours.crontab, ours.timezone, ours.key) == (theirs.crontab, theirs.timezone, theirs.key)


def test_the_page_names_every_field_and_placeholder() -> None:
    shown = set(re.findall(r"`([^`\n]+)`", PAGE))
    assert Schedule.model_fields.keys() | {f"{{{name}}}" for name in (*PLACEHOLDERS, "name")} <= shown
    at = datetime(2026, 3, 1, 1, tzinfo=UTC)
    plan = schedule(timezone=BERLIN)
    assert {plan.fill(f"{{{name}}}", "x", at) for name in PLACEHOLDERS} <= shown
