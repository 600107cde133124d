"""The table of steps: the chain, and which function takes which step."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from batchpipe.model.records import JOB, Stage, State
from batchpipe.model.steps import JOB_STEPS, SHARD_STEPS, STEPS, chain_from, follows
from batchpipe.testing import Pump


def names(index: int, stage: str) -> list[str]:
    return [step.name for step in chain_from(index, stage)]


@pytest.mark.parametrize(
    ("stage", "links"),
    [
        (Stage.PLANNED, ["upload", "create", "poll", "download"]),
        (Stage.UPLOADED, ["create", "poll", "download"]),
        (Stage.CREATED, ["poll", "download"]),
        (Stage.ENDED, ["download"]),
    ],
)
def test_the_chain_of_a_shard_starts_at_its_stage(stage: Stage, links: list[str]) -> None:
    assert names(0, stage.value) == links


@pytest.mark.parametrize("state", [state for state in State if state not in (State.RUNNING, State.CANCELLING)])
def test_a_job_is_prepared_at_its_beginning_and_merged_at_its_end(state: State) -> None:
    begins = state in (State.PENDING, State.PREPARING)

    assert names(JOB, state.value) == (["prepare"] if begins else ["merge"])


def test_only_the_stage_of_the_next_link_follows() -> None:
    """Any other stage, an earlier one too, needs a chain of its own."""
    order = list(Stage)[:-1]  # after the last one there is no step
    found = {(a, b) for a in order for b in order if follows(a.value, b.value)}

    assert found == set(pairwise(order))


def test_each_step_has_a_function_of_its_runner(tmp_path: Path) -> None:
    pump = Pump(tmp_path)

    assert STEPS.keys() == JOB_STEPS.keys() | SHARD_STEPS.keys()
    assert all(callable(getattr(pump.shard_runner, f"_{name}")) for name in SHARD_STEPS)
    assert all(callable(getattr(pump.job_runner, f"_{name}")) for name in JOB_STEPS)


def test_what_brings_rows_to_the_provider_is_marked() -> None:
    """These wait for quota; what is paid already goes on."""
    assert {step.name for step in STEPS.values() if step.sends} == {"upload", "create"}
