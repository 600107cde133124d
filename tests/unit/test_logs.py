"""Log lines: one event a line, which says what it is about."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchpipe.errors import Paused, Unavailable
from batchpipe.telemetry.logs import BeatFilter, ContextFilter, JsonFormatter, TextFormatter, about
from batchpipe.testing import Pump

Rows = Callable[..., list[dict[str, object]]]


class Lines(logging.Handler):
    """Keeps what was written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(formatter)
        self.addFilter(ContextFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def listen() -> Iterator[Callable[[logging.Formatter], list[str]]]:
    """Lines of all loggers, in a format."""
    root, handlers, level = logging.getLogger(), list[Lines](), logging.getLogger().level

    def start(formatter: logging.Formatter) -> list[str]:
        handlers.append(Lines(formatter))
        root.addHandler(handlers[-1])
        root.setLevel("INFO")
        return handlers[-1].lines

    yield start
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(level)


Listen = Callable[[logging.Formatter], list[str]]


def run_job(folder: Path, rows: list[dict[str, object]]) -> str:
    pump = Pump(folder)
    pump.api.fail_next("retrieve", Unavailable("HTTP 503:\nupstream is\tdown", status=503))
    pump.api.fail_next("download", RuntimeError("a bug"))
    job_id = pump.submit(rows)
    pump.run_until_idle()
    return job_id


def test_every_line_of_a_turn_says_what_it_is_about(tmp_path: Path, chat_rows: Rows, listen: Listen) -> None:
    """As keys of one JSON object a line, tracebacks too."""
    lines = listen(JsonFormatter())
    job_id = run_job(tmp_path, chat_rows(2))
    events: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert not [line for line in lines if "\n" in line]
    assert [event for event in events if event.get("job") != job_id or not event.get("event")] == []
    by_name = {event["event"]: event for event in events}
    assert {"planned", "created", "status", "deferred", "turn_failed", "collected", "ended"} <= by_name.keys()
    for name in ("created", "status", "deferred", "turn_failed", "collected"):
        event = by_name[name]
        assert event["shard"] == 0
        assert event["batch"].startswith("batch_")
        assert event["account"] == "default"
    assert by_name["collected"]["ok"] == 2
    assert by_name["turn_failed"]["exception"].endswith("RuntimeError: a bug")
    assert next(event for event in events if event["event"] == "deferred")["reason"] == "provider"


def test_an_account_that_is_paused_is_one_line(tmp_path: Path, chat_rows: Rows, listen: Listen) -> None:
    """Of however many shards: each says in the job's own log what it waits for, and Celery that it comes back."""
    lines = listen(logging.Formatter("%(levelname)s %(message)s"))
    pump = Pump(tmp_path, max_rows=1)
    pump.api.fail_next("upload", Paused("401: no such key", code="invalid_api_key"))
    job_id = pump.submit(chat_rows(2))
    pump.run_until_idle()
    (line,) = (line for line in lines if "no such key" in line)
    assert line.startswith("ERROR account paused: 401: no such key seconds=300")
    assert line.endswith(f"event=account_paused job={job_id} shard=0 account=default")
    assert "deferred" in [event["event"] for event in pump.store.events.read(job_id)]


def test_an_input_that_is_not_there_yet_is_warned_of_once(tmp_path: Path, chat_rows: Rows, listen: Listen) -> None:
    """The job waits an hour for a worker that has it; who keeps the site should know at once."""
    lines = listen(logging.Formatter("%(levelname)s %(message)s"))
    pump = Pump(tmp_path)
    job_id = pump.submit(chat_rows(2), input=str(tmp_path / "export.jsonl"))
    pump.run_until_idle()
    (line,) = (line for line in lines if line.startswith("WARNING"))
    assert "deferred: " in line
    assert "export.jsonl" in line
    assert f"event=deferred job={job_id}" in line
    error = pump.job(job_id).error
    assert error is not None
    assert "export.jsonl" in error.message


def test_a_line_for_people_ends_with_what_it_is_about(tmp_path: Path, chat_rows: Rows, listen: Listen) -> None:
    """An event is one line, whatever the provider's words hold."""
    lines = listen(TextFormatter())
    job_id = run_job(tmp_path, chat_rows(2))
    (line,) = (line for line in lines if "503" in line)
    assert line.count("\n") == 0
    assert "deferred: HTTP 503:\\nupstream is" in line
    assert f"event=deferred job={job_id} shard=0 batch=batch_" in line
    assert line.endswith(" account=default")


def record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("x").makeRecord("x", 20, "f", 1, message, args, None, extra=extra)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [("()", "{'job': 'job_0ab', 'shard': 3, 'epoch': 1}"), ("job_0ab shard 3", "{}"), ("", "job=job_0ab shard=3")],
)
def test_lines_of_celery_say_it_too(args: str, kwargs: str) -> None:
    """However the task's arguments are shown to people."""
    data = {"name": "batchpipe.poll", "id": "t1", "args": args, "kwargs": kwargs}
    found = record("Task succeeded", data=data)
    assert ContextFilter().filter(found)
    line = json.loads(JsonFormatter().format(found))
    assert (line["task"], line["task_id"], line["job"], line["shard"]) == ("batchpipe.poll", "t1", "job_0ab", 3)


STRATEGY, TRACE, BEAT = "celery.worker.strategy", "celery.app.trace", "celery.beat"
SENT = "Scheduler: Sending due task %s (%s)"


@pytest.mark.parametrize(
    ("name", "message", "about_it", "at_info"),
    [
        (STRATEGY, "received", {"name": "batchpipe.sweep"}, False),
        (TRACE, "succeeded", {"name": "batchpipe.sweep", "return_value": "0"}, False),
        (TRACE, "succeeded", {"name": "batchpipe.schedules", "return_value": "0"}, False),
        (BEAT, SENT, ("batchpipe-sweep", "batchpipe.sweep"), False),
        (TRACE, "succeeded", {"name": "batchpipe.sweep", "return_value": "3"}, True),
        (STRATEGY, "received", {"name": "batchpipe.poll"}, True),
        (TRACE, "succeeded", {"name": "shop.mail", "return_value": "0"}, True),
        (BEAT, SENT, ("batchpipe-sweep", "shop.sweep"), True),
        (BEAT, "beat: Shutting down...", (), True),
    ],
)
def test_what_comes_every_few_seconds_and_did_nothing_is_debug(
    name: str, message: str, about_it: Any, at_info: bool
) -> None:
    """50,000 lines a day would hide the few that matter; at DEBUG they are there."""
    logger, heard = logging.getLogger(name), Lines(logging.Formatter("%(levelname)s %(message)s"))
    heard.addFilter(BeatFilter())
    logger.addHandler(heard)
    before = logger.level
    try:
        for level in ("INFO", "DEBUG"):
            logger.setLevel(level)
            args, extra = (about_it, None) if isinstance(about_it, tuple) else ((), {"data": about_it})
            logger.info(message, *args, extra=extra)
    finally:
        logger.setLevel(before)
        logger.removeHandler(heard)

    levels = [line.split()[0] for line in heard.lines]
    assert levels == (["INFO", "INFO"] if at_info else ["DEBUG"])


def test_lines_of_other_tasks_are_left_alone() -> None:
    found = record("Task succeeded", data={"name": "shop.mail", "id": "t1", "kwargs": "{'job': 'job_0ab'}"})
    ContextFilter().filter(found)
    assert not hasattr(found, "job")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_no_line_tells_a_password(formatter: logging.Formatter) -> None:
    """Not in the message, not in what stands beside it, not in a traceback."""
    url = "redis://:hunter2@host/0"
    try:
        raise OSError(f"cannot reach {url}")
    except OSError:
        found = record("lost %s", url, fields={"input": url}, place=url)
        found.exc_info = sys.exc_info()
    assert "hunter2" not in formatter.format(found)


def test_what_json_cannot_hold_is_written_all_the_same() -> None:
    line = JsonFormatter().format(record("half a pair: \ud800", big=1 << 70))
    assert json.loads(line)["big"] == 1 << 70


def test_ids_end_with_what_they_are_about() -> None:
    """A thread that goes on to another job does not speak of the last one."""
    with about(job="job_1", batch=None), about(shard=2):
        inside = record("x")
        ContextFilter().filter(inside)
    outside = record("x")
    ContextFilter().filter(outside)
    assert (inside.__dict__["job"], inside.__dict__["shard"]) == ("job_1", 2)
    assert "batch" not in inside.__dict__
    assert "job" not in outside.__dict__
