"""What `list`, `status` and `run` print: within 100 columns, whatever a job is called; exactly this."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.cli import progress, status
from batchpipe.cli.listing import job_lines
from batchpipe.cli.progress import active_ones, headline, make_display, next_look, waits_for
from batchpipe.cli.text import clip, left, right, short_number, width
from batchpipe.model.admission import Waiting
from batchpipe.model.progress import progress_of_job, rate_words
from batchpipe.model.records import Counts, JobRecord, Problem, ShardRecord, State
from batchpipe.model.stats import Pause
from batchpipe.model.views import Moment, Sums, job_view, shard_view, summary_view

AT = 1_796_030_569.0
JOB = JobRecord(
    id="job_0mx31zfdotp7c5vea7l",
    name="cities",
    stage=State.RUNNING,
    input="/data/cities.jsonl",
    output="/data/out",
    total=10_000,
    shards=3,
    round=1,
    answered=1_234,
    answered_at=AT,
    answered_before=[(AT - 600.0, 634)],
    created_at=AT - 700,
    reasons={"~500 server_error": 2, "- content_filter": 14},
)
ETA = {"text": "usually 12 to 40 min; 9 in 10 within 2 h"}
MOMENT = Moment(now=AT, job_eta=ETA, shard_eta=lambda shard: ETA if shard.stage == "created" else None)
SHARDS = [
    ShardRecord(job=JOB.id, index=0, stage="collected", status="completed", batch_id="batch_" + "0" * 32, rows=1_000,
                answered=1_000, counts=Counts(total=1_000, completed=984, failed=16)),
    ShardRecord(job=JOB.id, index=1, stage="created", status="in_progress", batch_id="batch_" + "1" * 32, rows=5_000,
                counts=Counts(total=5_000, completed=234, failed=0), next_at=AT + 90),
    ShardRecord(job=JOB.id, index=2, stage="planned", rows=4_000,
                trouble=Problem(code="token_limit_exceeded", message="the provider's queue is full")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def listed(job: JobRecord, moment: Moment = MOMENT, silent: set[str] = set()) -> list[str]:  # noqa: B006
    return list(job_lines(job, job_view(job, moment=moment), silent))


def test_a_running_job_in_a_list() -> None:
    assert listed(JOB) == [
        "cities                     job_0mx31zfdotp7c5vea7l  running          1,234/10,000   12%  11-30 09:11",
        "  1.0 rows/s; usually 12 to 40 min; 9 in 10 within 2 h",
        "  ! not ok: 14 x content_filter, 2 x 500 server_error",
    ]


def test_what_holds_a_job_up_in_a_list() -> None:
    paused = Moment(now=AT, pause=Pause(290.0, "insufficient_quota", "no money"))
    job = JOB.evolve(reasons={}, answered_before=[], name=None)
    assert listed(job, paused, {"batchpipe"})[1:] == [
        "  ! waits: account 'default' is paused for 290 s (insufficient_quota): no money",
        "  ! no worker on queue batchpipe",
    ]
    held = job.evolve(hold=Problem(code="cancelled_elsewhere", message="decide"))
    assert listed(held)[1:] == ["  usually 12 to 40 min; 9 in 10 within 2 h", "  ! held: cancelled_elsewhere: decide"]
    over = job.evolve(stage=State.FAILED, error=Problem(code="invalid_input", message="line 1:\n no " + "x" * 200))
    assert listed(over, Moment())[1].startswith("  ! invalid_input: line 1: no xxx")


def test_the_end_of_a_path_stands_for_a_job_without_a_name() -> None:
    job = JOB.evolve(name=None, input="/a/very/long/path/to/the/exports/of/monday.jsonl")
    assert listed(job)[0].startswith("...xports/of/monday.jsonl  job_")


NAMES = st.text(max_size=300) | st.sampled_from(
    ["日本語" * 40, "👩‍👩‍👧‍👦" * 30, "é" * 90, "\u202e\x1b[2J\n\t", "", " ", "a\u0301" * 50, "\ud800"]
)


@given(NAMES, st.integers(0, 10**13), st.integers(0, 10**13), NAMES)
def test_no_line_is_wider_than_100_columns(name: str, answered: int, total: int, message: str) -> None:
    """Whatever a job is called and however many rows it has; and no line has a further one in it."""
    trouble = Problem(code="x", message=message)
    job = JOB.evolve(name=name, answered=answered, total=total, trouble=trouble, reasons={"400 " + "c" * 64: 10**12})
    lines = listed(job, MOMENT, {"batchpipe"})
    assert max(map(width, lines)) <= 100
    assert not any(set(line) & {"\n", "\x1b", "\r", "\u202e"} for line in lines)
    at = lines[0].index(job.id)
    assert width(lines[0][:at]) == 27  # columns stay where they are


@given(st.text(max_size=60), st.integers(3, 40))
def test_cells_have_their_width(text: str, columns: int) -> None:
    for cell in (left(text, columns), right(text, columns), left(text, columns, end=True)):
        assert width(cell) == columns
    assert width(clip(text, columns)) <= columns


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0, "0"), (999_999, "999,999"), (1_234_567, "1,234k"), (10**13, "10,000G")]
)
def test_large_numbers_keep_to_their_column(value: int | None, shown: str) -> None:
    assert short_number(value, 8) == shown


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (None, ""),
        (0.0, "0 rows/h"),
        (250.4, "250 rows/s"),
        (1.0, "1.0 rows/s"),
        (0.5, "30 rows/min"),
        (0.001, "3.6 rows/h"),
    ],
)
def test_a_rate_is_said_in_a_unit_that_people_can_picture(rate: float | None, words: str) -> None:
    assert rate_words(rate) == words


def test_all_is_100_percent_and_nothing_less_is() -> None:
    assert progress_of_job(JOB.evolve(answered=9_999)).percent == 99.9
    assert progress_of_job(JOB.evolve(answered=10_001)).percent == 100.0
    assert progress_of_job(JOB.evolve(answered=-3)).percent == 0.0
    assert progress_of_job(JOB.evolve(total=0)).percent is progress_of_job(JOB.evolve(total=None)).percent is None


# -- status --------------------------------------------------------------------------------------------------------


def shown(job: JobRecord, shards: list[ShardRecord], capsys: pytest.CaptureFixture[str]) -> list[str]:
    class Nobody:
        def pause_of(self, account: str) -> None: ...

    sums = Sums()
    for shard in shards:
        sums.add(shard)
    view = {**summary_view(job, sums, MOMENT), "shards": [shard_view(shard, MOMENT) for shard in shards]}
    seen = status._Seen()
    for shard in shards:
        seen.add(shard)
    status._print_job(Nobody(), job, view)  # type: ignore[arg-type]
    status._print_shards(seen, shards, view["shards"])
    return capsys.readouterr().out.splitlines()


def test_the_status_of_a_running_job(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(JOB, SHARDS, capsys)
    assert lines == [
        "cities  running",
        "job       job_0mx31zfdotp7c5vea7l",
        "account   default",
        "input     /data/cities.jsonl",
        "output    /data/out",
        "created   2026-11-30 09:11:09   ended -",
        "progress  1,234 of 10,000 rows answered (12%), 1.0 rows/s",
        "eta       usually 12 to 40 min; 9 in 10 within 2 h",
        "rows      total 10,000   ok -   failed -   missing -",
        "not ok    14 x content_filter, 2 x 500 server_error",
        "waits     shard 2: the provider's queue is full",
        "SHARD   STAGE      STATUS                 ANSWERED  BATCH                                   ROUND",
        "0       collected  completed           1,000/1,000  batch_00000000000000000000000000000000      1",
        "1       created    in_progress           234/5,000  batch_11111111111111111111111111111111      1",
        "        usually 12 to 40 min; 9 in 10 within 2 h",
        "2       planned    -                       0/4,000  -                                           1",
        "        ! the provider's queue is full",
    ]
    assert max(map(width, lines)) <= 100


def test_the_status_of_a_job_that_has_ended_shows_a_sample_of_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    job = JOB.evolve(
        stage=State.PARTIAL, ok=9_984, failed=16, missing=0, ended_at=AT, name="", reasons={"- content_filter": 16}
    )
    view = summary_view(job, Sums(), Moment(samples={"- content_filter": "The response was filtered"}))
    status._print_job(None, job, view)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{job.id}  partial"
    assert "progress  10,000 of 10,000 rows answered (100%)" in lines
    assert lines[-2:] == ["not ok    16 x content_filter", "          content_filter: The response was filtered"]


# -- run -----------------------------------------------------------------------------------------------------------


def test_a_run_says_how_far_it_is_how_fast_and_when_it_looks_again() -> None:
    assert headline(JOB, SHARDS, MOMENT) == (
        "running: 1,234 of 10,000 rows answered (12%), 1.0 rows/s; 1/3 shards collected; "
        "usually 12 to 40 min; 9 in 10 within 2 h; next look in 90 s"
    )
    assert headline(JobRecord(id="job_x"), [], Moment()) == "pending: 0 of - rows answered"
    assert next_look([SHARDS[1].evolve(next_at=AT + 600)], AT) == "next look in 10 min"
    assert next_look(SHARDS, AT + 100) == next_look([], AT) == next_look(SHARDS, None) == ""


def many(count: int) -> list[ShardRecord]:
    stages = ["collected", "created", "planned", "ended"]
    return [ShardRecord(job=JOB.id, index=at, stage=stages[at % 4], rows=10) for at in range(count)]


def test_of_many_shards_a_run_shows_the_active_ones() -> None:
    assert active_ones(many(20)) == many(20)
    active = active_ones(many(1_000))
    assert len(active) == 20
    assert {shard.stage for shard in active} == {"created", "ended"}
    troubled = [*many(8), *(SHARDS[2].evolve(index=at) for at in range(8, 30))]
    assert {shard.index for shard in active_ones(troubled)} >= {1, 3, 5, 7, 8, 9}


ROOM = Waiting(place=3, of=9, kind="tokens")
IN_LINE = Moment(now=AT, room=(2, ROOM), shard_room=lambda shard: ROOM if shard.waits_since is not None else None)
WAITING = [ShardRecord(job=JOB.id, index=at, stage="planned", rows=10, waits_since=AT - 60) for at in range(2)]
LINE = "room in the provider's queue of tokens for its model (place 3 of 9)"


def test_a_run_whose_shards_all_wait_for_room_says_so_and_at_which_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert waits_for(JOB, WAITING, IN_LINE) == f"2 shards wait for {LINE}"
    assert waits_for(JOB, WAITING, MOMENT) == ""
    with make_display() as display:
        display.update(JOB, WAITING, IN_LINE)
    assert f"; waits: 2 shards wait for {LINE}" in capsys.readouterr().err


def test_a_run_asks_for_the_room_of_those_shards_alone_that_it_shows() -> None:
    """There may be 100,000, and each hundred of them is a question to Redis."""
    asked: list[int] = []

    def room(shard: ShardRecord) -> Waiting:
        asked.append(shard.index)
        return ROOM

    waiting = [WAITING[0].evolve(index=at) for at in range(5_000)]
    shown = active_ones([*many(100), *waiting])
    assert len(shown) == 20
    progress._table(shown, Moment(room=(5_000, ROOM), shard_room=room))
    waits_for(JOB, waiting, Moment(room=(5_000, ROOM), shard_room=room))
    assert len(asked) == 20
    assert len(active_ones([*many(4), *waiting])) == 20


def test_a_run_without_a_terminal_writes_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Of many shards one changes all the time. After an hour a line comes each three minutes, at last each five."""
    now = [1_000.0]
    said, rest = dict[int, int](), many(99)
    with make_display(lambda: now[0]) as display:
        for hour in range(24):
            for _ in range(120):
                now[0] += 30
                shards = [*rest, SHARDS[1].evolve(status=f"in_progress {now[0]}")]
                if display.wants_update(JOB):
                    display.update(JOB, shards, Moment(now=AT))
            said[hour] = len(capsys.readouterr().err.splitlines())
    assert 20 <= said[0] <= 130
    assert 12 <= said[23] <= 13


def test_a_live_display_draws_any_job() -> None:
    import io

    from rich.console import Console

    live: Any = progress._Live.__new__(progress._Live)
    live._clock = time.monotonic
    live._started = 0.0
    screen = io.StringIO()
    console = Console(file=screen, width=100)
    for job in (
        JOB,
        JOB.evolve(name="日" * 300),
        JOB.evolve(name=None, total=None, trouble=Problem(code="x", message="[bold]no")),
    ):
        for shards in ([], SHARDS, many(500)):
            console.print(live._draw(job, shards, MOMENT))
    text = screen.getvalue()
    assert "next look in 90 s" in text
    assert "and 480 more shards: 125 collected, " in text
    assert "not ok: 14 x content_filter, 2 x 500 server_error" in text
    console.print(live._draw(JOB, WAITING, IN_LINE))
    drawn = " ".join(screen.getvalue().split())
    assert drawn.count("place 3 of 9") == 3  # of the job, and of each shard
