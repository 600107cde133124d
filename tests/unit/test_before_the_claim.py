"""What goes wrong before a turn holds its record: a client that cannot be made, a record that cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from batchpipe.cli import cli
from batchpipe.cli.listing import job_lines
from batchpipe.client.moments import Moments
from batchpipe.config.account import Account
from batchpipe.config.settings import Settings
from batchpipe.errors import BatchpipeError, SettingsError
from batchpipe.model.records import JOB, JobRecord, State, new_job_id
from batchpipe.model.views import SHOWN, job_view
from batchpipe.provider import Apis, warm_up
from batchpipe.store import Store
from batchpipe.testing import Pump

Rows = Callable[..., list[dict[str, object]]]

ENVIRONMENTS = [
    ("ALL_PROXY", "socks5://user:pw-secret@127.0.0.1:1", "ALL_PROXY: a SOCKS proxy needs a package"),
    ("https_proxy", "foo://user:pw-secret@host", "https_proxy: no proxy that can be used"),
    ("HTTP_PROXY", "http://user:pw-secret@host:port", "HTTP_PROXY: no proxy that can be used"),
    ("SSL_CERT_FILE", "/nowhere/ca.pem", "SSL_CERT_FILE: there is no file /nowhere/ca.pem"),
    ("SSL_CERT_FILE", "/etc/hostname", "SSL_CERT_FILE (/etc/hostname): holds no certificates"),
]


def settings(tmp_path: Path, **account: Any) -> Settings:
    made = Account(api_key=SecretStr("sk-secret")).model_copy(update=account)  # also what settings would refuse
    return Settings(_env_file=None, home=tmp_path, accounts={"default": made})


@pytest.mark.parametrize(("name", "value", "words"), ENVIRONMENTS)
def test_a_variable_with_which_no_client_can_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """With what to do; the proxy's password stays out."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        Apis(settings(tmp_path))("default")
    assert words in str(error.value)
    assert "unset it" in str(error.value)
    assert "pw-secret" not in str(error.value)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port/v1", "\x00"])
def test_a_base_url_that_is_none_is_an_error_of_the_settings(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError):
        Apis(settings(tmp_path, base_url=url))("default")


@pytest.mark.parametrize(("name", "value", "words"), ENVIRONMENTS)
def test_a_worker_starts_though_the_environment_is_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """Else nobody could say what is wrong: the jobs would wait for a worker."""
    monkeypatch.setenv(name, value)
    warm_up()


@pytest.mark.parametrize(("name", "value", "words"), ENVIRONMENTS)
def test_doctor_names_the_variable_in_one_line(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """And goes on with what else it looks at."""
    for key, text in {"REDIS_URL": redis_url, "PREFIX": prefix}.items():
        monkeypatch.setenv(f"BATCHPIPE_{key}", text)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, value)
    said = CliRunner().invoke(cli, ["doctor"])
    assert [words in line for line in said.output.splitlines()].count(True) == 1
    assert "workers" in said.output
    assert "Traceback" not in said.output


def test_that_no_client_can_be_made_is_trouble_of_the_shard(tmp_path: Path, chat_rows: Rows) -> None:
    """It is seen in `status`, costs no try, and passes when the variable is mended."""
    pump = Pump(tmp_path)

    def refused(name: str) -> Any:
        raise SettingsError("ALL_PROXY: a SOCKS proxy needs a package")

    apis, pump.shard_runner.apis = pump.shard_runner.apis, refused
    job_id = pump.submit(chat_rows(1))
    for _ in range(4):
        pump.step()
    shard = pump.shards(job_id)[0]
    assert shard.trouble is not None
    assert "ALL_PROXY" in shard.trouble.message
    assert shard.tries == 0
    job, moments = pump.job(job_id), Moments(pump.store, pump.settings)
    whole = job_view(job, pump.store.shards.of_job(job, fields=SHOWN), moments.of(job))
    listed = job_view(job, moment=moments.of_list(job))
    assert whole["waits_for"] == listed["waits_for"] == whole["shards"][0]["waits_for"]
    assert any(line.startswith("  ! waits: ALL_PROXY: a SOCKS") for line in job_lines(job, listed, set()))
    pump.shard_runner.apis = apis
    pump.run_until_idle()
    assert pump.job(job_id).state is State.SUCCEEDED


def test_an_unforeseen_error_before_the_claim_is_counted_and_shown(tmp_path: Path, chat_rows: Rows) -> None:
    """A shard without a batch is given up after some tries, with its rows missing and the reason."""
    pump = Pump(tmp_path)

    def broken(name: str) -> Any:
        raise ZeroDivisionError("made wrong")

    pump.shard_runner.apis = broken
    pump.job_runner.apis = broken
    job_id = pump.submit(chat_rows(1))
    pump.run_until_idle()
    job = pump.job(job_id)
    assert (job.state, job.missing) == (State.FAILED, 1)
    assert job.error is not None
    assert "made wrong" in job.error.message


def test_a_sweep_looks_after_the_others_though_an_account_has_no_client(tmp_path: Path, chat_rows: Rows) -> None:
    pump = Pump(tmp_path)
    job_id = pump.submit(chat_rows(1))
    pump.run_until_idle()

    def broken(name: str) -> Any:
        raise ZeroDivisionError("made wrong")

    pump.job_runner.apis = broken
    pump.advance(60.0)
    assert pump.sweep() == 0
    assert pump.store.counters.stats().swept == pytest.approx(pump.at, abs=1.0)
    assert pump.job(job_id).closed


def test_a_record_that_cannot_be_read_is_said_in_one_line(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, text in {"REDIS_URL": redis_url, "PREFIX": prefix}.items():
        monkeypatch.setenv(f"BATCHPIPE_{key}", text)
    store = Store.connect(redis_url, prefix=prefix)
    job = JobRecord(id=new_job_id(), epoch=1, output="/nowhere/out")
    store.jobs.submit(job)
    store.connection.client.hset(f"{prefix}job:{job.id}", "max_rows", "many")
    said = CliRunner().invoke(cli, ["status", job.id])
    assert f"the record of {job.id} in Redis cannot be read" in str(said.exception)
    assert isinstance(said.exception, BatchpipeError)  # which the command line prints as one line


def test_what_keeps_a_record_from_being_claimed_is_noted_on_it(tmp_path: Path, chat_rows: Rows) -> None:
    """And tried again later, for a deploy may mend it."""
    pump = Pump(tmp_path)
    job_id = pump.submit(chat_rows(1))
    key = f"{pump.store.connection.prefix}job:{job_id}"
    pump.store.connection.client.hset(key, "max_rows", "many")
    pump.step()
    assert "cannot be read" in cast(str, pump.store.connection.client.hget(key, "trouble"))
    pump.store.connection.client.hset(key, "max_rows", "2")
    pump.run_until_idle()
    assert pump.job(job_id).state is State.SUCCEEDED
    assert JOB == -1
