"""What becomes of Celery's events before Flower sees them, the words of the pipeline, and the password that is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from batchpipe.errors import Unavailable
from batchpipe.monitoring.flower import Event, as_seen
from batchpipe.pipeline.messages import Done, Retry
from batchpipe.storage.local import kept_secret
from batchpipe.tasks.celery_tasks import LAST_TIME, Waiting
from batchpipe.testing import Pump


def test_a_message_that_waits_for_its_time_is_told_as_waiting() -> None:
    """With what it waits for as its result; Celery would call it received, and show the words as arguments."""
    words = f"{LAST_TIME}in_progress 3 of 7 rows; again after 9 s"
    event: Event = {"type": "task-received", "retries": 2, "eta": "soon", "timestamp": 5.0, "kwargs": words}
    seen = as_seen(event, "batchpipe.poll")

    assert seen == {
        **event,
        "type": "task-retried",
        "received": 5.0,
        "kwargs": "",
        "result": "in_progress 3 of 7 rows",
    }


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        ({"type": "task-received", "retries": 0, "eta": None, "kwargs": ""}, {}),
        ({"type": "task-retried", "exception": "busy"}, {"exception": None, "result": "busy"}),
        ({"type": "task-succeeded", "result": "'collected: 3 ok'"}, {"result": "collected: 3 ok"}),
        ({"type": "task-succeeded", "result": "None"}, {"result": ""}),
        ({"type": "task-failed", "exception": "a bug", "traceback": "..."}, {}),
        ({"type": "task-started"}, {}),
    ],
)
def test_other_events_of_our_tasks(event: Event, changes: Event) -> None:
    """A failure keeps all that it has."""
    assert as_seen(event, "batchpipe.poll") == {**event, **changes}


def test_the_tasks_of_a_site_are_left_alone() -> None:
    event: Event = {"type": "task-received", "retries": 2, "eta": "soon", "kwargs": "{}"}
    assert as_seen(event, "shop.tasks.mail") == event


def test_the_tasks_of_beat_are_not_shown() -> None:
    assert as_seen({"type": "task-sent"}, "batchpipe.sweep") is None
    assert as_seen({"type": "task-sent"}, "batchpipe.schedules") is None


def test_the_reason_of_a_retry_is_plain_words() -> None:
    """Celery's log and monitors print its repr."""
    assert repr(Waiting("a batch is not done")) == "a batch is not done"


def test_a_turn_that_is_put_off_says_why(tmp_path: Path) -> None:
    pump = Pump(tmp_path, max_rows=2)
    job = pump.submit([{"custom_id": "r0", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}])
    pump.api.fail_next("upload", Unavailable("HTTP 503 of the provider", after=0.0, status=503))
    pump.step()  # prepare
    epoch = pump.shards(job)[0].epoch

    assert _why(pump, "upload", job, epoch) == "HTTP 503 of the provider"
    pump.advance(60)
    assert _why(pump, "poll", job, epoch) == "nothing to do: it is at another step"
    assert _why(pump, "upload", job, epoch + 1) == "void: a newer message replaces it"


def _why(pump: Pump, link: str, job: str, epoch: int) -> str:
    following = pump.shard_runner.run(link, job, 0, epoch)
    assert isinstance(following, Retry | Done)
    return following.why


def test_a_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    """However many ask for it at the same time."""
    path, numbers = tmp_path / "home" / "secret", count()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: kept_secret(path, lambda: f"word{next(numbers)}"), range(16)))

    assert found == {path.read_text().strip()}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]
