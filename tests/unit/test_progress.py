"""What a run says on a stderr that is no terminal."""

from __future__ import annotations

import pytest

from batchpipe.cli import progress
from batchpipe.cli.progress import make_display
from batchpipe.model.records import JobRecord, Problem, ShardRecord, State
from batchpipe.model.stats import Pause
from batchpipe.model.views import Moment

JOB = JobRecord(id="job_x", stage=State.RUNNING, account="default")


def shard(message: str | None = None, stage: str = "planned") -> ShardRecord:
    trouble = Problem(code="x", message=message) if message else None
    return ShardRecord(job="job_x", index=0, stage=stage, trouble=trouble)


def test_a_run_says_again_and_again_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trouble, a pause, or that a person has to decide: not once, and then nothing for minutes."""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with make_display() as display:
        for _ in range(3):
            display.update(JOB, [shard("the disk is full")], Moment())
        lines = capsys.readouterr().err.splitlines()
        assert sum("; waits: the disk is full" in line for line in lines) == 3

        for _ in range(3):
            display.update(JOB, [shard()], Moment(pause=Pause(290.0, "insufficient_quota", "no money")))
        lines = capsys.readouterr().err.splitlines()
        said = "account 'default' is paused for 290 s (insufficient_quota): no money (fixed? batchpipe resume default)"
        assert lines.count(said) == 3

        display.update(JOB.evolve(hold=Problem(code="held", message="decide")), [shard()], Moment())
        assert "; waits: decide" in capsys.readouterr().err


def test_what_is_over_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with make_display() as display:
        display.update(JOB, [shard("the disk was full", stage="collected")], Moment())
    assert "waits" not in capsys.readouterr().err
