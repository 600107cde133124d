"""What `run` says at its end, and when it stops following: what is true, and what helps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from batchpipe.cli.run import _say_goodbye, _what_helps
from batchpipe.client.local_run import ApiWatch
from batchpipe.client.retry import check_retriable
from batchpipe.config.settings import Settings
from batchpipe.errors import NO_API, NO_ROUTE, PermanentError, SettingsError
from batchpipe.model.records import JobRecord, Problem, ShardRecord, State


def ended(**fields: Any) -> JobRecord:
    return JobRecord(id="job_x", stage=State.PARTIAL, **fields)


def test_a_retry_is_not_advised_for_rows_that_would_only_fail_again() -> None:
    """It was, whatever was wrong with them."""
    wrong = _what_helps(ended(failed=3, missing=0, reasons={"400 invalid_request_error": 2, "- model_not_found": 1}))
    assert wrong.startswith("these rows fail again as they are: correct them in the input and submit that (or, once")
    assert "batchpipe retry job_x" in wrong
    passes = _what_helps(ended(failed=2, missing=1, reasons={"500 server_error": 2, "- no_answer": 1}))
    assert passes == "retry these rows: batchpipe retry job_x"
    both = _what_helps(ended(failed=3, missing=0, reasons={"500 server_error": 2, "400 -": 1}))
    assert (
        both == "retry these rows: batchpipe retry job_x (1 of them fail again as they are: correct those in the input)"
    )


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (ended(ok=3, failed=0, missing=0), "job job_x has no rows to retry: all of them are ok"),
        (
            JobRecord(id="job_x", stage=State.FAILED, error=Problem(code="invalid_input", message="line 1: no JSON")),
            "job job_x has no rows to retry: it failed before any was sent (invalid_input); correct that, and submit",
        ),
        (JobRecord(id="job_x", stage=State.CANCELLED), "has no rows to retry: none was sent; submit its input again"),
    ],
)
def test_a_job_that_has_nothing_to_retry_says_what_helps(job: JobRecord, says: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check_retriable(job)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("account", "is_ours", "settings", "says"),
    [
        ("default", True, {}, "goes on at the provider"),
        ("sandbox", True, {}, "rests: its sandbox stops with this command, and goes on when it is followed again"),
        ("sandbox", False, {}, "goes on at the provider"),  # another process has it
        ("default", True, {"sandbox": True}, "rests when no worker runs its sandbox, and goes on when it is followed"),
    ],
)
def test_what_becomes_of_a_job_that_is_no_longer_followed_is_said_as_it_is(
    account: str, is_ours: bool, settings: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing goes on at a sandbox that ends with the command."""
    job: Any = SimpleNamespace(
        id="job_x",
        record=JobRecord(id="job_x", account=account),
        shards=lambda fields: [ShardRecord(job="job_x", index=0, batch_id="batch_1")],
    )
    _say_goodbye(job, Settings(_env_file=None, **settings), is_ours=is_ours)
    assert f"stopped following; job job_x {says}" in capsys.readouterr().err


RUNNING = JobRecord(id="job_x", stage=State.RUNNING)
NO_V1 = Problem(
    code=NO_API, message="it does not take the file: Invalid URL; does BASE_URL lack its /v1? (tried again .."
)
PAGE = Problem(code=NO_ROUTE, message="HTTP 404 without the provider's own words: Not Found")


def refused(problem: Problem | None, backoff: int, **fields: Any) -> list[ShardRecord]:
    return [ShardRecord(job="job_x", index=0, trouble=problem, backoff=backoff, **fields)]


@pytest.mark.parametrize(("problem", "times"), [(NO_V1, 1), (PAGE, 3)])
def test_a_run_ends_where_there_is_no_api_at_the_address(problem: Problem, times: int) -> None:
    """It tried for hours what only a person can correct. A page may be a proxy's: the third time it is believed."""
    watch = ApiWatch()
    for backoff in range(times):
        watch.check(RUNNING, refused(problem if backoff else None, backoff))
    with pytest.raises(SettingsError) as caught:
        watch.check(RUNNING, refused(problem, times))
    assert "Correct the address of account 'default' (OPENAI_BASE_URL or BATCHPIPE_ACC" in str(caught.value)
    assert "Job job_x is kept: the same command goes on with it" in str(caught.value)
    assert "tried again" not in str(caught.value)


def test_what_is_recorded_from_before_does_not_end_a_run_that_goes_on_with_it() -> None:
    """The address may be corrected by now."""
    watch = ApiWatch()
    watch.check(RUNNING, refused(NO_V1, 4))
    watch.check(RUNNING, refused(NO_V1, 4))
    with pytest.raises(SettingsError):
        watch.check(RUNNING, refused(NO_V1, 5))


def test_a_run_does_not_end_if_there_was_an_api_before_or_for_other_trouble() -> None:
    watch = ApiWatch()
    watch.check(RUNNING, refused(None, 0))
    watch.check(RUNNING, refused(Problem(code="http_503", message="busy"), 9))
    watch.check(RUNNING, refused(PAGE, 9, file_id="file-1"))
    watch.check(RUNNING, [*refused(PAGE, 9), ShardRecord(job="job_x", index=1, batch_id="batch_1")])
