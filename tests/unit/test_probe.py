"""probe and profiles: what a Batch server can do, found out by a few rows or known beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from batchpipe.cli import cli
from batchpipe.cli.doctor import _unknown_server
from batchpipe.client.capabilities import Capabilities
from batchpipe.client.option_checks import check_window
from batchpipe.client.probe import Probe
from batchpipe.client.validation import validate_input
from batchpipe.config.account import Account
from batchpipe.config.loading import load_settings
from batchpipe.config.site import forget_sites
from batchpipe.errors import AmbiguousResult, InvalidInput, Paused, Refused, SettingsError
from batchpipe.model.provider import Batch
from batchpipe.model.records import JobRecord
from batchpipe.provider.api import Api
from batchpipe.sandbox import Fault, Sandbox
from batchpipe.storage.local import set_variables


class KeyedApi(Api):
    """Of a server that heeds the Idempotency-Key: a repeated call is answered with the batch of the first."""

    def create_batch(self, **arguments: Any) -> Batch:
        if not self.made:
            self.made.append(super().create_batch(**arguments))
        return self.made[0]

    made: list[Batch]


def probe(*faults: dict[str, Any], check: Any = None, heeds_key: bool = False) -> Capabilities:
    """A probe of a sandbox with these faults; afterwards nothing may be left in it."""
    with Sandbox(validating_seconds=0.02) as sandbox:
        for fault in faults:
            sandbox.faults.add(Fault.from_json(fault))
        account = Account(base_url=sandbox.base_url, api_key=SecretStr("any"))
        api = Api(account)

        def keyed(key: str) -> Api:
            if not heeds_key:
                return api.with_header("Idempotency-Key", key)
            other = KeyedApi(account)
            other.made = []
            return other

        made = Probe(
            api,
            account,
            "default",
            model="gpt-4o-mini",
            endpoint="/v1/chat/completions",
            window="24h",
            timeout=20.0,
            keyed=keyed,
        )
        found = made.run()
        if check is not None:
            check(sandbox)
        return found


def answers(found: Capabilities) -> dict[str, str | None]:
    return {one.what: one.value for one in found.found}


def test_a_full_server_has_all_capabilities_and_nothing_is_left_there() -> None:
    """Ten rows at most; its batches have ended and its files are deleted."""

    def is_empty(sandbox: Sandbox) -> None:
        api = Api(Account(base_url=sandbox.base_url, api_key=SecretStr("any")))
        assert list(api.iter_files(0.0)) == []
        assert all(batch.status != "in_progress" for batch in api.iter_batches(0.0))

    found = probe(check=is_empty)
    known = answers(found)
    assert known["batches are listed"] == known["metadata in the list"] == "yes"
    assert known["a batch can be cancelled"] == known["every row is answered"] == known["list is newest first"] == "yes"
    assert known["window of 48h"] == "refused"
    assert known["list goes on after a batch"] == "yes"
    assert known["a repeated call with an Idempotency-Key"] == "second batch"
    assert found.settings == {
        "LISTS_BATCHES": "true",
        "ECHOES_METADATA": "true",
        "SHORTEST_WINDOW": "24h",
        "LONGEST_WINDOW": "24h",
    }
    assert found.rows <= 10
    assert found.left == []


def test_a_server_that_heeds_the_idempotency_key_is_found_out() -> None:
    """It makes one batch of two calls; such a server could be called again without a look."""
    found = probe(heeds_key=True)
    assert answers(found)["a repeated call with an Idempotency-Key"] == "same batch"
    assert found.left == []


def test_a_server_that_does_not_take_a_repeated_call_is_found_out() -> None:
    refused = {"kind": "status", "route": "POST /v1/batches", "status": 400, "after": 4, "times": 1}
    assert answers(probe(refused))["a repeated call with an Idempotency-Key"] == "refused, 400"
    unclear = {**refused, "status": 409}
    assert answers(probe(unclear))["a repeated call with an Idempotency-Key"] is None


def test_a_list_that_does_not_go_on_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of more than a page cannot be read there."""
    first_page = Api.batch_page
    monkeypatch.setattr(Api, "batch_page", lambda self, after=None: first_page(self))
    assert answers(probe())["list goes on after a batch"] == "no"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, True),
        ({"LISTS_BATCHES": "true"}, False),
        ({"PROFILE": "groq"}, False),
        ({"SANDBOX": "true"}, False),
        ({"BASE_URL": "https://api.openai.com/v1"}, False),
    ],
)
def test_doctor_tells_of_the_probe_where_nobody_has_said_what_a_server_can_do(
    fields: dict[str, str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a profile nor a probe, and it is not OpenAI."""
    for name, value in ({"BASE_URL": "https://batch.example/v1", "API_KEY": "k"} | fields).items():
        monkeypatch.setenv(f"BATCHPIPE_ACCOUNTS__T__{name}", value)
    forget_sites()
    found = list(_unknown_server("t"))
    forget_sites()
    assert [(one.verdict, one.fix.split(":")[0]) for one in found] == (
        [("warn", "batchpipe probe t --write .env")] if told else []
    )


def test_a_server_whose_lists_show_no_metadata_is_found_out() -> None:
    """That decides how an unanswered create is looked for."""
    found = probe({"kind": "no_metadata"})
    assert answers(found)["metadata in the list"] == "no"
    assert found.settings["ECHOES_METADATA"] == "false"


def test_a_server_that_cannot_list_is_found_out() -> None:
    """A 404 for the list is an answer: the server has none."""
    found = probe({"kind": "status", "route": "GET /v1/batches", "status": 404})
    assert answers(found)["batches are listed"] == "no"
    assert found.settings["LISTS_BATCHES"] == "false"
    assert "ECHOES_METADATA" not in found.settings


def test_trouble_with_the_list_is_not_taken_for_its_absence() -> None:
    """A server that answers 503 may list batches tomorrow."""
    found = probe({"kind": "status", "route": "GET /v1/batches", "status": 503})
    assert answers(found)["batches are listed"] is None
    assert "LISTS_BATCHES" not in found.settings


def test_a_key_that_is_refused_ends_the_probe() -> None:
    """Nothing can be found out without one."""
    with pytest.raises(Paused):
        probe({"kind": "status", "route": "POST /v1/files", "status": 401})


def test_a_create_without_an_answer_ends_the_probe_with_its_files_deleted() -> None:
    """It may have made a batch: that is said, and no second call is made."""
    with pytest.raises(AmbiguousResult):
        probe({"kind": "drop_after", "route": "POST /v1/batches", "after": 1, "times": 1})


def probe_with(sandbox: Sandbox, said: list[str], **arguments: Any) -> Probe:
    account = Account(base_url=sandbox.base_url, api_key=SecretStr("any"))
    given = {"model": "gpt-4o-mini", "endpoint": "/v1/chat/completions", "window": "24h", "timeout": 20.0, **arguments}
    return Probe(Api(account), account, "default", say=said.append, **given)


def test_the_batch_of_a_create_call_without_an_answer_is_found_and_cancelled() -> None:
    """It ran to its end, was paid, and nobody knew its name."""
    said: list[str] = []
    with Sandbox(rows_per_second=0.01) as sandbox:
        sandbox.faults.add("drop_after", route="POST /v1/batches", after=1, times=1)
        made = probe_with(sandbox, said)
        with pytest.raises(AmbiguousResult):
            made.run()
        batches = list(Api(Account(base_url=sandbox.base_url, api_key=SecretStr("any"))).iter_batches(0.0))
    assert [batch.status for batch in batches if batch.status != "failed"] == ["cancelled"]
    assert made.result.left == []


def test_a_batch_that_no_list_shows_is_named_by_its_file() -> None:
    """Also where the probe ends with an error: only a person can look after it."""
    said: list[str] = []
    now = iter(range(0, 10_000, 5))
    with Sandbox(validating_seconds=0.02) as sandbox:
        sandbox.faults.add("drop_after", route="POST /v1/batches", after=1, times=1)
        sandbox.faults.add("status", route="GET /v1/batches", status=404)
        made = probe_with(sandbox, said, clock=lambda: float(next(now)), sleep=lambda seconds: None)
        with pytest.raises(AmbiguousResult):
            made.run()
    [left] = made.result.left
    assert left.startswith("a batch of file-")
    assert f"Warning: {left} could not be deleted or cancelled yet: look at the provider" in said


def test_the_shortest_and_the_longest_window_that_are_taken_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever the first batch had."""
    create = Api.create_batch

    def create_batch(self: Api, **arguments: Any) -> Batch:
        if arguments["completion_window"] not in ("12h", "24h", "48h", "7d"):
            raise Refused("no such window", status=400)
        return create(self, **{**arguments, "completion_window": "24h"})

    monkeypatch.setattr(Api, "create_batch", create_batch)
    found = probe()
    assert (found.settings["SHORTEST_WINDOW"], found.settings["LONGEST_WINDOW"]) == ("12h", "7d")
    assert found.rows <= 12


def test_settings_are_written_in_place_of_earlier_ones(tmp_path: Path) -> None:
    """Other lines of the file stay as they are."""
    file = tmp_path / ".env"
    file.write_text("A=1\nexport BATCHPIPE_ACCOUNTS__X__LISTS_BATCHES=true\n# kept\n")
    set_variables(file, ["BATCHPIPE_ACCOUNTS__X__LISTS_BATCHES=false"])
    assert file.read_text() == "A=1\n# kept\nBATCHPIPE_ACCOUNTS__X__LISTS_BATCHES=false\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".env"]


def test_a_file_that_only_its_owner_may_read_stays_so_also_behind_a_link(tmp_path: Path) -> None:
    """There are keys in it."""
    file, link = tmp_path / "real", tmp_path / "link"
    file.write_text("KEY=1\n")
    file.chmod(0o640)
    link.symlink_to(file)
    set_variables(link, ["A=2"])
    assert (file.read_text(), file.stat().st_mode & 0o777, link.is_symlink()) == ("KEY=1\nA=2\n", 0o640, True)
    set_variables(tmp_path / "new", ["A=2"])
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_profile_gives_defaults_and_what_is_set_wins() -> None:
    """Also where a setting is set to another value than the profile's."""
    account = Account.model_validate({"profile": "groq", "max_bytes": 5})
    assert (account.base_url, account.longest_window) == ("https://api.groq.com/openai/v1", "7d")
    assert account.max_bytes == 5
    assert Account(profile="azure").kind == "azure"
    assert Account().longest_window is None


def test_openai_base_url_wins_over_the_address_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set by a person; the profile's is a default."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__DEFAULT__PROFILE", "groq")
    assert load_settings(env_file=None).account("default").base_url == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(("window", "words"), [("48h", "only 24h"), ("1h", "only 24h")])
def test_a_window_that_the_provider_does_not_take_is_refused_before_anything_is_sent(window: str, words: str) -> None:
    """The line says which are taken, and which setting says so."""
    with pytest.raises(InvalidInput, match=f"completion_window: {window} is .*{words}.*LONGEST|SHORTEST"):
        check_window(JobRecord(id="job_x", completion_window=window), Account(profile="openai"))


def test_any_window_is_taken_where_the_settings_say_nothing() -> None:
    """An unknown provider knows itself what it takes."""
    check_window(JobRecord(id="job_x", completion_window="99d"), Account())


def test_a_custom_id_that_is_too_long_for_the_provider_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch would fail as a whole."""
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__T__PROFILE", "together")
    row = '{"custom_id": "%s", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'
    file = tmp_path / "in.jsonl"
    file.write_text(row % "a" + row % ("b" * 65))
    settings = load_settings(env_file=None)
    with pytest.raises(InvalidInput, match=r"line 2: custom_id: .* has 65 characters; .* takes 64"):
        validate_input(str(file), settings, account="t")
    assert validate_input(str(file), settings).rows == 2


def test_shards_are_no_larger_than_the_account_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a job says."""
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__T__MAX_ROWS", "1")
    row = '{"custom_id": "%s", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'
    file = tmp_path / "in.jsonl"
    file.write_text(row % "a" + row % "b")
    assert validate_input(str(file), load_settings(env_file=None), account="t", max_rows=50).shards == 2


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs ``batchpipe probe`` against a sandbox that looks like a paid account."""
    with Sandbox(validating_seconds=0.02) as sandbox:
        monkeypatch.setenv("OPENAI_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("BATCHPIPE_ENV_FILE", "")
        forget_sites()
        yield lambda *args: CliRunner().invoke(cli, ["probe", *args])
    forget_sites()


def test_nothing_is_sent_before_somebody_has_agreed(command: Callable[..., Result]) -> None:
    """Where nobody can be asked, a line says which option agrees."""
    done = command()
    assert isinstance(done.exception, InvalidInput)
    assert "confirm with --yes" in str(done.exception)


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_sent(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    """Rows were paid first. No name of a draft is shown, and none is left."""
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    for file, why in ((tmp_path / "no/x.env", "No such file or directory"), (tmp_path / "latin", "it is no text in")):
        done = command("--yes", "--write", str(file), "--timeout", "20")
        assert isinstance(done.exception, InvalidInput)
        assert str(done.exception).startswith(f"--write: {file}: cannot be changed: {why}")
        assert str(done.exception).count(file.name) == 1
        assert "uploading" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["latin"]


def test_an_account_that_no_setting_has_is_refused_when_an_input_is_checked(tmp_path: Path) -> None:
    """Its limits would not be applied, in silence."""
    with pytest.raises(SettingsError, match="account 'nope' is not in the settings"):
        validate_input(str(tmp_path / "in.jsonl"), load_settings(env_file=None), account="nope")


def test_probe_prints_settings_that_can_be_copied_and_writes_them(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    """And as JSON, for programs."""
    file = tmp_path / "found.env"
    done = command("--yes", "--json", "--write", str(file), "--timeout", "20")
    assert done.exception is None, done.output
    found = json.loads(done.stdout)
    assert found["settings"]["BATCHPIPE_ACCOUNTS__DEFAULT__LISTS_BATCHES"] == "true"
    assert "BATCHPIPE_ACCOUNTS__DEFAULT__LISTS_BATCHES=true" in file.read_text().splitlines()


def test_a_server_that_takes_one_batch_and_no_further_one_is_probed_to_the_end() -> None:
    """What needs a second batch is not known; nothing breaks off."""
    full = {"kind": "status", "route": "POST /v1/batches", "status": 400, "code": "no_more", "after": 2}
    found = answers(probe(full))
    assert found["a batch can be cancelled"] == "no"
    assert found["list goes on after a batch"] is None
    assert found["status at the end"] == "completed"
