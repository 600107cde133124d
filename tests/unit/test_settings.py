"""Settings: read once, from the environment, .env and secret files; mistakes are named, values are not."""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytest

from batchpipe.config.loading import child_environment, load_settings
from batchpipe.config.settings import Settings
from batchpipe.config.site import Site, current_settings, current_site, install_site
from batchpipe.config.site_values import SiteSettings
from batchpipe.errors import SettingsError

SECRET = "sk-very-secret"


def test_the_defaults_are_those_of_the_contract() -> None:
    """Operators and tests lean on them."""
    settings = load_settings()
    assert (settings.prefix, settings.queue, settings.lease_seconds, settings.sweep_seconds) == (
        "{batchpipe}:",
        "batchpipe",
        60,
        5,
    )
    assert (settings.poll_min_seconds, settings.poll_max_seconds, settings.create_grace_seconds) == (5, 600, 30)
    assert (settings.attempts, settings.max_rows, settings.max_bytes) == (3, 50_000, 200_000_000)
    assert (settings.job_ttl_days, settings.log_format, settings.allowed_roots) == (30, "text", ())


def test_the_default_account_falls_back_to_the_names_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other OpenAI programs read works here, too."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj_1")
    account = load_settings().account("default")
    assert account.api_key is not None
    assert account.api_key.get_secret_value() == SECRET
    assert (account.base_url, account.project) == ("http://localhost:1/v1", "proj_1")


def test_an_account_of_its_own_is_not_mixed_with_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another account's requests must not go to the default one's server."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__TEAM__API_KEY", SECRET)
    settings = load_settings()
    assert settings.account("team").base_url is None
    assert settings.account("TEAM") == settings.account("team")


@pytest.mark.parametrize(
    ("name", "code", "variable"),
    [
        ("default", "no_api_key", "OPENAI_API_KEY"),
        ("other", "no_account", "BATCHPIPE_ACCOUNTS__OTHER__API_KEY"),
    ],
)
def test_a_missing_key_names_the_variable_to_set(name: str, code: str, variable: str) -> None:
    """The message is the documentation at three in the morning."""
    with pytest.raises(SettingsError) as caught:
        load_settings().account(name)
    assert caught.value.code == code
    assert variable in str(caught.value)


def test_a_name_of_an_account_that_is_a_slip_is_held_beside_the_one_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__DEFALT__API_KEY", "sk-x")
    for name in ("default", "defalut"):
        with pytest.raises(SettingsError, match=r"\(there is one named 'defalt'\): set "):
            load_settings().account(name)
    with pytest.raises(SettingsError, match=r"'research' is not in the settings: set "):
        load_settings().account("research")


def test_a_wrong_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It might be a secret in the wrong place."""
    monkeypatch.setenv("BATCHPIPE_LEASE_SECONDS", SECRET)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "BATCHPIPE_LEASE_SECONDS" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_of_an_account_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip of the pen would otherwise be a key that is never used."""
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__TEAM__APIKEY", SECRET)
    with pytest.raises(SettingsError, match="BATCHPIPE_ACCOUNTS__TEAM__APIKEY"):
        load_settings()


def test_dot_env_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={SECRET}\nBATCHPIPE_QUEUE=from-file\nUNRELATED=1\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().queue == "from-file"
    monkeypatch.setenv("BATCHPIPE_QUEUE", "from-environment")
    settings = load_settings()
    assert settings.queue == "from-environment"
    assert settings.account("default").api_key is not None


def test_secret_files_may_hold_any_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker and Kubernetes mount them as files, one a secret."""
    (tmp_path / "OPENAI_API_KEY").write_text(SECRET)
    (tmp_path / "BATCHPIPE_ACCOUNTS__TEAM__API_KEY").write_text("team-key\n")
    monkeypatch.setenv("BATCHPIPE_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    keys = [settings.account(name).api_key for name in ("default", "team")]
    assert [key.get_secret_value() for key in keys if key] == [SECRET, "team-key"]


def test_no_repr_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the settings, not of an account."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", f"redis://:{SECRET}@localhost/0")
    settings = load_settings()
    for shown in (repr(settings), str(settings), repr(settings.account("default")), settings.model_dump_json()):
        assert SECRET not in shown


def test_allowed_roots_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our own places are always among them."""
    monkeypatch.setenv("BATCHPIPE_ALLOWED_ROOTS", "/data, s3://bucket/in")
    monkeypatch.setenv("BATCHPIPE_HOME", str(tmp_path))
    settings = load_settings()
    assert settings.allowed_roots == ("/data", "s3://bucket/in")
    assert settings.roots() == ("/data", "s3://bucket/in", str(tmp_path))
    assert Settings().roots() == settings.roots()


def test_settings_are_read_once_and_can_be_installed() -> None:
    """Read at the edge, passed down as values."""
    first = current_settings()
    assert current_settings() is first
    other = first.with_redis("redis://localhost/1")
    current_site().settings = other
    assert current_settings().redis_address() == "redis://localhost/1"


def test_a_child_gets_the_redis_that_was_found() -> None:
    """Through its environment, never its arguments."""
    settings = load_settings().with_redis("redis://:x@localhost:1/0")
    environment = child_environment(settings, POLL_MIN_SECONDS="1")
    assert environment["BATCHPIPE_REDIS_URL"] == "redis://:x@localhost:1/0"
    assert environment["BATCHPIPE_POLL_MIN_SECONDS"] == "1"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"NOTIFY_SECRET": "hello"}, "NOTIFY_SECRET: is no secret: write whsec_ and at least 16 bytes"),
        ({"NOTIFY": "ftp://x"}, "NOTIFY: is no http:// or https:// URL"),
        ({"NOTIFY": "two words"}, "NOTIFY: has what is neither the name of a target nor a URL"),
        ({"ACCOUNTS__TEAM__NOTIFY": "ftp://x"}, "ACCOUNTS__TEAM__NOTIFY: is no http:// or https:// URL"),
        ({"TARGETS__OPS__SECRET": "whsec_!!"}, "TARGETS__OPS__SECRET: is no secret: write whsec_"),
        ({"TARGETS__OPS__URL": "x.example.com"}, "TARGETS__OPS__URL: is no http:// or https:// URL"),
        ({"TARGETS__OPS__KIND": "slack", "TARGETS__OPS__URL": "nonsense"}, "TARGETS__OPS__URL: is no http://"),
        ({"TARGETS__OPS__KIND": "mail", "TARGETS__OPS__TO": "nobody"}, "TARGETS__OPS__TO: 'nobody' is no mail address"),
        ({"ACCOUNTS__DEFAULT__BASE_URL": "127.0.0.1:1/v1"}, "ACCOUNTS__DEFAULT__BASE_URL: is no http:// or https://"),
        (
            {"ACCOUNTS__DEFAULT__ENQUEUED_TOKENS": "{gpt: 5}"},
            'ACCOUNTS__DEFAULT__ENQUEUED_TOKENS: is not JSON: write {"gpt-4o-mini": 2000000}',
        ),
        (
            {"ACCOUNTS__DEFAULT__ENQUEUED_TOKENS": "2000000"},
            "ACCOUNTS__DEFAULT__ENQUEUED_TOKENS: is one number: ENQUEUED_TOKENS_DEFAULT is meant for that",
        ),
        (
            {"POLL_MIN_SECONDS": "4", "POLL_MAX_SECONDS": "3"},
            "POLL_MAX_SECONDS: the longest pause, 3 s, is shorter than the shortest: lower POLL_MIN",
        ),
        ({"SECRETS_DIR": "/no/such/folder"}, "SECRETS_DIR: there is no folder /no/such/folder: "),
        ({"SECRETS_DIR": __file__}, f"SECRETS_DIR: {__file__} is no folder: "),
        ({"ACCOUNTS": "{no"}, "ACCOUNTS (or one that begins with BATCHPIPE_ACCOUNTS__): is not JSON"),
    ],
)
def test_what_could_never_work_is_refused_under_the_name_of_its_variable(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not found out by a worker, at the end of a night."""
    for name, value in variables.items():
        monkeypatch.setenv(f"BATCHPIPE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings(env_file=None)
    assert f"BATCHPIPE_{says}" in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ATTEMPTS", "many", "must be a whole number from 1 to 100"),
        ("ATTEMPTS", "0", "must be a whole number from 1 to 100"),
        ("MAX_ROWS", "1.5", "must be a whole number of 1 or more"),
        ("LEASE_SECONDS", "0", "must be a number above 0"),
        ("LEASE_SECONDS", "inf", "must be a finite number"),
        ("POLL_MAX_SECONDS", "700", "must be a number above 0 and up to 600"),
        ("LOG_FORMAT", "xml", "must be text or json"),
        ("KEEP_WORKSPACE", "maybe", "must be true or false"),
        ("ACCOUNTS__A", "5", "must have names with their values, and is one value"),
        ("ACCOUNTS__A__MAX_ROWS", "x", "must be a whole number of 1 or more"),
        ("ACCOUNTS__A__PROFILE", "x", "must be openai, azure, groq, together or qwen"),
        ("ACCOUNTS__A__LONGEST_WINDOW", "24", "must be a number and its unit, s, m, h or d, such as 24h"),
        ("ACCOUNTS__A__PURPOSE", "x" * 65, "must have at most 64 characters"),
        ("ACCOUNTS__A__ENQUEUED_TOKENS__GPT", "x", "must be a whole number"),
    ],
)
def test_what_a_value_must_be_is_said_in_plain_words(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the range of a number; not in the words of a library."""
    monkeypatch.setenv(f"BATCHPIPE_{variable}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings(env_file=None)
    assert str(caught.value) == f"BATCHPIPE_{variable}: {says}"


@pytest.mark.parametrize("url", ["127.0.0.1:18100/v1", "http://", "ftp://host/v1", "http://host:port/v1"])
def test_a_base_url_that_is_none_is_refused_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each call failed, and was tried again."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(SettingsError, match=r"^OPENAI_BASE_URL: is no http:// or https:// URL: write https://HOST/v1$"):
        load_settings(env_file=None)


def test_tokens_of_models_are_read_as_json_or_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__A__ENQUEUED_TOKENS", '{"gpt-4o-mini": 5}')
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__B__ENQUEUED_TOKENS__GPT", "7")
    accounts = load_settings(env_file=None).accounts
    assert accounts["a"].enqueued_tokens == {"gpt-4o-mini": 5}
    assert list(accounts["b"].enqueued_tokens.values()) == [7]


# -- what a site gives ---------------------------------------------------------------------------------------------


def given(**values: Any) -> Settings:
    return load_settings(given=SiteSettings(values, lambda name: f'BATCHPIPE["{name}"]'))


def test_a_sites_settings_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key may still come from the environment, beside what the site says of the same account."""
    monkeypatch.setenv("BATCHPIPE_QUEUE", "from-environment")
    monkeypatch.setenv("BATCHPIPE_ATTEMPTS", "7")
    monkeypatch.setenv("BATCHPIPE_ACCOUNTS__EU__API_KEY", "sk-from-environment")
    settings = given(QUEUE="from-site", ACCOUNTS={"EU": {"BASE_URL": "https://eu.example/v1"}}, HOME=None)

    assert (settings.queue, settings.attempts) == ("from-site", 7)
    account = settings.account("eu")
    assert account.api_key is not None
    assert account.api_key.get_secret_value() == "sk-from-environment"
    assert account.base_url == "https://eu.example/v1"


def test_the_names_that_every_openai_program_knows_may_be_given_too() -> None:
    assert given(OPENAI_API_KEY="sk-site").account("default").api_key is not None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"REDISURL": "x"}, 'BATCHPIPE["REDISURL"]: there is no such setting; did you mean REDIS_URL?'),
        ({"ATTEMPTS": 0}, 'BATCHPIPE["ATTEMPTS"]: '),
        ({"ACCOUNTS": {"eu": {"LOOKS_PER_SECOND": 0}}}, "BATCHPIPE[\"ACCOUNTS\"]['eu']['looks_per_second']: "),
        ({"ACCOUNTS": ["eu"]}, 'BATCHPIPE["ACCOUNTS"]: '),
    ],
)
def test_what_is_wrong_is_spelled_as_the_site_spells_it(values: dict[str, Any], says: str) -> None:
    """No value is shown: it may be a secret."""
    with pytest.raises(SettingsError) as caught:
        given(**values)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("wrong", [{"REDISURL": "x"}, {"ATTEMPTS": 0}, {"REDIS_URL": f"{SECRET}@host"}])
def test_no_secret_of_a_site_stands_in_the_variables_of_a_traceback(wrong: dict[str, Any]) -> None:
    """Debug pages and error reports show these."""
    with pytest.raises(SettingsError) as caught:
        given(**{"REDIS_URL": f"redis://:{SECRET}@h/0", "ACCOUNTS": {"eu": {"API_KEY": SECRET}}, **wrong})

    frames = [frame for frame, _ in walk_tb(caught.tb) if frame.f_globals["__name__"].startswith("batchpipe.")]
    shown = [f"{frame.f_code.co_name}: {frame.f_locals!r}" for frame in frames]
    assert shown[0].startswith("load_settings: ")
    assert [line for line in shown if SECRET in line] == []


def test_a_missing_account_is_said_in_the_words_of_the_site() -> None:
    """And in those of the environment, where it may stand, too."""
    settings = given(ACCOUNTS={"eu": {"API_KEY": ""}}).with_redis("redis://localhost/1")
    for name in ("eu", "us"):
        with pytest.raises(SettingsError) as caught:
            settings.account(name)
        assert f'set its API_KEY in BATCHPIPE["ACCOUNTS"], or BATCHPIPE_ACCOUNTS__{name.upper()}__API_KEY' in str(
            caught.value
        )


def test_what_is_empty_in_a_site_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the environment: sites write ``os.environ.get("REDIS_URL", "")``."""
    monkeypatch.setenv("BATCHPIPE_QUEUE", "from-environment")
    settings = given(QUEUE="", REDIS_URL="", ACCOUNTS={"eu": {"API_KEY": "sk", "BASE_URL": ""}})

    assert (settings.queue, settings.redis_url, settings.account("eu").base_url) == ("from-environment", None, None)


def test_what_the_environment_gets_wrong_is_spelled_as_the_environment_spells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCHPIPE_ATTEMPTS", "none")
    with pytest.raises(SettingsError, match=r"^BATCHPIPE_ATTEMPTS: "):
        given(QUEUE="x")


def test_a_site_whose_settings_are_wrong_is_told_by_whoever_uses_them() -> None:
    """Not at its start: its checks say it better."""
    install_site(Site(lambda: given(ATTEMPTS=0)))
    with pytest.raises(SettingsError):
        current_settings()
    install_site(Site(lambda: given(ATTEMPTS=2)))
    assert current_settings().attempts == 2
    assert current_settings() is current_settings()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("BATCHPIPE_REDIS", "BATCHPIPE_REDIS_URL"),
        ("BATCHPIPE_REDISURL", "BATCHPIPE_REDIS_URL"),
        ("batchpipe_redis_ulr", "BATCHPIPE_REDIS_URL"),
        ("BATCHPIPE_ACCOUNT__TEAM__API_KEY", "BATCHPIPE_ACCOUNTS"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_nearest_right_one(
    name: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ignored in silence, it would make a second, private Redis of the one that was meant."""
    monkeypatch.setenv(name, "secret")
    (line,) = load_settings(env_file=None).unknown
    assert line == f"{name.upper()}: there is no such setting; did you mean {near}?"


def test_misspelt_names_in_a_env_file_are_named_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BATCHPIPE_ATEMPTS=3\nOTHER=1\n")
    (line,) = load_settings(env_file=tmp_path / ".env").unknown
    assert "BATCHPIPE_ATTEMPTS" in line


def test_a_line_of_the_env_file_that_cannot_be_read_is_named_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """dotenv's own words name no file, count blank lines wrongly and came four times."""
    file = tmp_path / ".env"
    file.write_text(f'BATCHPIPE_QUEUE=first\n\n# a comment\n\n\nthe key = "{SECRET}\nBATCHPIPE_ATTEMPTS=7\n')
    settings = load_settings(env_file=file)
    (line,) = settings.unknown
    assert line.startswith(f"{file}, line 6: is ignored, because it is not NAME=VALUE: correct it")
    assert SECRET not in line
    assert (settings.queue, settings.attempts) == ("first", 7)
    assert caplog.records == []


@pytest.mark.parametrize(
    "name", ["BATCHPIPE_SERVICE_HOST", "BATCHPIPE_REDIS_PORT_6379_TCP_ADDR", "BATCHPIPE_PORT", "BATCHPIPE_SECRETS_DIR"]
)
def test_what_kubernetes_sets_for_a_service_is_no_misspelt_setting(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, str(tmp_path) if name.endswith("DIR") else "tcp://10.0.0.1:6379")
    assert load_settings(env_file=None).unknown == ()


def test_the_longest_pause_alone_may_be_below_the_usual_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It then bounds both."""
    monkeypatch.setenv("BATCHPIPE_POLL_MAX_SECONDS", "0.5")
    assert load_settings(env_file=None).poll_max_seconds == 0.5
