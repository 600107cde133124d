"""The end of a job becomes a signal of Django, in the worker that ended it, at least once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchpipe
from batchpipe.client.client import default_client
from tests import django_project
from tests.django_project import land, requests


@pytest.fixture(autouse=True)
def site(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[None]:
    django_project.configure()
    with django_project.site(redis_url, prefix, tmp_path / "home"):
        yield


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    """(signal, job id) of all that was sent."""
    from batchpipe.contrib.django import signals

    names = ("job_succeeded", "job_partial", "job_failed", "job_cancelled")
    found: list[tuple[str, str]] = []
    receivers: dict[str, Any] = {}
    for name in names:

        def hear(sender: Any, job: batchpipe.Job, name: str = name, **_: Any) -> None:
            assert sender is batchpipe.Job
            found.append((name, job.id))

        receivers[name] = hear
        getattr(signals, name).connect(hear)
    yield found
    for name in names:
        getattr(signals, name).disconnect(receivers[name])


def test_each_end_has_its_signal(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    cancelled = batchpipe.submit(requests(1))
    cancelled.cancel()
    partial, failed = batchpipe.submit(requests(2)), batchpipe.submit(requests(1))
    fine = batchpipe.submit({**row, "custom_id": f"x{row['custom_id']}"} for row in requests(1))
    land(tmp_path, "r0")

    assert sorted(heard) == sorted(
        [
            ("job_cancelled", cancelled.id),
            ("job_partial", partial.id),
            ("job_failed", failed.id),
            ("job_succeeded", fine.id),
        ]
    )


def test_a_receiver_that_raises_is_called_again_and_keeps_nobody_from_theirs(
    tmp_path: Path, heard: list[tuple[str, str]]
) -> None:
    """The database may be away when a job ends; its receiver gets its results all the same."""
    from batchpipe.contrib.django.signals import job_succeeded
    from tests.django_models import Note

    calls: list[str] = []

    def write(job: batchpipe.Job, **_: Any) -> None:
        calls.append(job.id)
        if len(calls) < 3:
            raise OSError("the database is away")
        for row in job.results():
            Note.objects.create(text=f"{job.id} {row.custom_id}")

    job_succeeded.connect(write)
    try:
        job = batchpipe.submit(requests(2))
        land(tmp_path)
    finally:
        job_succeeded.disconnect(write)

    assert calls == [job.id] * 3
    assert heard == [("job_succeeded", job.id)] * 3  # so a receiver must not mind a second time
    assert Note.objects.filter(text__startswith=job.id).count() == 2
    assert default_client().get_job(job.id).record.closed


def test_receivers_that_always_raise_leave_one_traceback_each_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Django would write one at each of 60 tries. What it says of other signals is left alone."""
    from django.dispatch import Signal

    from batchpipe.contrib.django.signals import job_succeeded

    other = Signal()

    def fail(**_: Any) -> None:
        raise OSError("the database is away")

    def fail_too(**_: Any) -> None:
        raise KeyError("fail too")

    def fail_in_another(**_: Any) -> None:
        raise ValueError("of another signal")

    def send_another(**_: Any) -> None:
        other.send_robust(sender=None)

    receivers = (fail, fail_too, send_another)
    other.connect(fail_in_another)
    for receiver in receivers:
        job_succeeded.connect(receiver)
    try:
        job = batchpipe.submit(requests(1))
        land(tmp_path)
    finally:
        for receiver in receivers:
            job_succeeded.disconnect(receiver)

    tracebacks = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert (tracebacks.count(OSError), tracebacks.count(KeyError)) == (1, 1)
    assert tracebacks.count(ValueError) == job.refresh().record.notify_attempts == 61
    assert [event["event"] for event in job.logs()][-1] == "not_notified"


def test_a_refused_job_has_no_results_and_a_reason(tmp_path: Path) -> None:
    """A receiver may treat all ends alike: reading the rows must not fail, or it would be called for an hour."""
    from batchpipe.contrib.django.signals import job_failed

    read = []

    def read_all(sender: Any, job: batchpipe.Job, **_: Any) -> None:
        assert job.error is not None
        read.append((list(job.results()), list(job.errors()), job.result().total, job.error.code))

    job_failed.connect(read_all)
    batchpipe.submit([{"custom_id": "no request"}])
    land(tmp_path)
    job_failed.disconnect(read_all)

    assert read == [([], [], 0, "invalid_input")]


def test_a_job_of_an_alias_is_told_under_its_own_id(tmp_path: Path, heard: list[tuple[str, str]]) -> None:
    ids = django_project.submit_at_once(2, "nightly")
    land(tmp_path)

    [(name, job_id)] = heard
    assert (name, job_id in ids) == ("job_succeeded", True)
