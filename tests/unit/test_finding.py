"""A person gives the beginning of an id, or ``last``; never is a job taken that was not meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from batchpipe.cli import cli
from batchpipe.client.client import Client
from batchpipe.client.finding import find_job
from batchpipe.config.settings import Settings
from batchpipe.config.site import current_site
from batchpipe.errors import InvalidInput, JobNotFound
from batchpipe.store import Connection, Store
from batchpipe.tasks.app import make_app
from tests.contract.store.protocol import new_job
from tests.redis_server import new_redis

IDS = [f"job_0mwa{name}{'x' * 14}" for name in "abcdefgh"] + [f"job_0mwb{'y' * 15}"]


@pytest.fixture
def store() -> Store:
    store = Store(Connection(new_redis()))
    for at, job_id in enumerate(IDS):
        store.jobs.submit(new_job(output=f"/o/{at}", name="日" * 60 if at == 0 else None).evolve(id=job_id))
    return store


@pytest.mark.parametrize("text", [IDS[1], IDS[1][:9], IDS[1][4:9], IDS[1][4:9].upper(), IDS[8][:8], "0mwb", "last"])
def test_a_unique_beginning_is_enough(store: Store, text: str) -> None:
    """With ``job_`` or without; ``last`` is the latest job."""
    assert find_job(store, text).id == (IDS[8] if text in (IDS[8][:8], "0mwb", "last") else IDS[1])


@pytest.mark.parametrize(
    "text", ["", "j", "job_", "job_0mw", "0", "x", "0mwc", "../etc", "job_*", "日本語日本", "\x00abcd", "LAST"]
)
def test_what_begins_no_job_is_not_known(store: Store, text: str) -> None:
    """Fewer than four characters are no beginning: the only job of a Redis must not be taken for a mistyped one."""
    with pytest.raises(JobNotFound):
        find_job(store, text)


def test_an_ambiguous_beginning_names_the_jobs_in_one_line(store: Store) -> None:
    with pytest.raises(InvalidInput, match="more than one job begins with 0mwa: ") as caught:
        find_job(store, "0mwa")
    said = str(caught.value)
    assert [job_id for job_id in IDS if job_id in said] == IDS[:5]
    assert f"{IDS[0]} ({'日' * 40})" in said
    assert said.endswith("and others; give more of the id")


def test_where_there_is_no_job_none_is_the_last() -> None:
    with pytest.raises(JobNotFound, match="there is no job here"):
        find_job(Store(Connection(new_redis())), "last")


# -- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(redis_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    for name, text in {"REDIS_URL": redis_url, "PREFIX": prefix, "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(f"BATCHPIPE_{name}", text)
    current_site().app = make_app(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, list(arguments), standalone_mode=False)

    return run


def test_each_command_takes_the_beginning_of_an_id(
    ask: Callable[..., Result], redis_url: str, prefix: str, tmp_path: Path, chat_rows: Callable[..., Any]
) -> None:
    """And says which job it was."""
    client = Client(Settings(_env_file=None, redis_url=redis_url, prefix=prefix, home=tmp_path / "home"))
    job = client.submit(chat_rows(2), output=str(tmp_path / "out"))
    for text in (job.id[:22], job.id[4:22], "last"):
        assert f"job       {job.id}\n" in ask("status", text).stdout
        assert "submitted" in ask("logs", text).stdout
        assert ask("wait", text, "--timeout", "0").return_value == 5
    assert f"job {job.id} has not ended" in str(ask("results", "last").exception)
    assert f"job {job.id} has not ended" in str(ask("retry", job.id[:22]).exception)
    assert ask("resume", "last").stderr == f"{job.id} is not held\n"
    assert f"{job.id} is cancelling" in ask("cancel", "last").stderr
    assert client.get_job(job.id).record.cancel
    with pytest.raises(JobNotFound):
        client.get_job(job.id[:22])  # programs give whole ids
