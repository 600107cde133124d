"""A worker's own time limit strikes in the middle of a turn: trouble of the worker, and no failure of the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from batchpipe.config.site import current_site
from batchpipe.errors import Unavailable
from batchpipe.model.records import State
from batchpipe.pipeline.runner import MAX_TRIES
from batchpipe.provider.errors import translated
from batchpipe.tasks import celery_tasks as tasks
from batchpipe.tasks.notifying import notify
from batchpipe.testing import Pump

Rows = Callable[..., list[dict[str, object]]]
OFTEN = 3 * MAX_TRIES


@pytest.mark.parametrize("method", ["upload", "create_batch", "batch_page", "retrieve", "download"])
def test_a_time_limit_that_is_met_again_and_again_gives_no_row_up(tmp_path: Path, chat_rows: Rows, method: str) -> None:
    """It is shown while it lasts, with what a person can change; then the job goes on."""
    pump = Pump(tmp_path, max_rows=2)
    job_id = pump.submit(chat_rows(2))
    if method == "batch_page":
        pump.api.fail_next("create_batch", SoftTimeLimitExceeded(), processed=True)
    pump.api.fail_next(method, SoftTimeLimitExceeded(), times=OFTEN)
    while pump.api.count(method) < OFTEN - 1:
        pump.advance(max(min(delivery.at for delivery in pump.waiting) - pump.at, 0.0) + 0.001)
        pump.step()
    [shard] = pump.shards(job_id)
    assert shard.tries == 0
    if method != "create_batch":  # each call of it is looked for first, which gets on
        assert shard.trouble is not None
        assert shard.trouble.code == "time_limit"
        assert "TIMEOUT_SECONDS" in shard.trouble.message
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.stage, job.ok) == (State.SUCCEEDED, 2)
    assert pump.api.billed == {"r0": 1, "r1": 1}


def test_a_limit_that_strikes_while_a_job_is_told_is_no_error_of_its_receiver(
    tmp_path: Path, chat_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not counted among the times that the receiver raised."""
    left = [SoftTimeLimitExceeded()] * OFTEN

    def listener(job_id: str) -> None:
        if left:
            raise left.pop()

    current_site().receivers["slow"] = listener
    pump = Pump(tmp_path, notify=notify)
    job_id = pump.submit(chat_rows(1))
    pump.run_until_idle()
    assert (pump.job(job_id).notify_attempts, pump.job(job_id).closed, left) == (0, True, [])


def test_a_limit_that_the_sdk_has_wrapped_is_still_known() -> None:
    """The SDK calls every error within a call a connection error."""
    import openai

    wrapped = openai.APIConnectionError(request=None)  # type: ignore[arg-type]
    wrapped.__cause__ = SoftTimeLimitExceeded()
    with pytest.raises(Unavailable) as raised, translated():
        raise wrapped
    assert raised.value.code == "time_limit"
    assert "task_soft_time_limit" in raised.value.message


def test_a_limit_that_strikes_outside_of_a_turn_brings_the_task_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        name, app = "batchpipe.poll", Celery(broker="redis://127.0.0.1:1/0")
        request: Any = type("R", (), {"kwargs": {"job": "job_x", "shard": 0}, "chain": []})

        def retry(self, **options: Any) -> BaseException:
            self.options = options
            return tasks.Waiting(str(options["exc"]))

    def turn() -> Any:
        raise SoftTimeLimitExceeded

    task = Task()
    with pytest.raises(tasks.Waiting, match="soft time limit"):
        tasks._answer(task, turn)
    assert task.options["countdown"] > 0
