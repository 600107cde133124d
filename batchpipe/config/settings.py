"""All settings, and the only reader of the environment (variables, ``.env``, secret files).

Settings are read once, at the edge (a command, a worker, a program's first call), and passed down as values.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import platformdirs
from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from batchpipe.config import seams
from batchpipe.config.site_values import SiteSettings
from batchpipe.errors import SettingsError
from batchpipe.model.schedule import Schedule

PREFIX = "BATCHPIPE_"

#: The account of ``run --sandbox``; its server runs as long as the command.
SANDBOX_ACCOUNT = "sandbox"


class Account(BaseModel):
    """One set of provider credentials and limits. Messages contain its name, never its key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["openai", "azure"] = Field("openai", description="openai (or any compatible server), or azure")
    api_key: SecretStr | None = Field(None, description="the provider's API key")
    organization: str | None = Field(None, description="OpenAI organization id")
    project: str | None = Field(None, description="OpenAI project id")
    base_url: str | None = Field(None, description="URL of an OpenAI-compatible server, with its /v1")
    webhook_secret: SecretStr | None = Field(None, description="secret of the provider's webhooks")
    azure_endpoint: str | None = Field(None, description="azure: https://NAME.openai.azure.com")
    api_version: str | None = Field(None, description="azure: api version, such as 2025-04-01-preview")
    sandbox: bool = Field(False, description="a test server: nothing is paid, so a Redis that forgets is allowed")
    file_expires_seconds: int = Field(
        1_209_600, description="the provider may delete uploaded inputs after so long; 0: do not ask for it"
    )
    looks_per_second: float = Field(5.0, gt=0, description="status reads per second, over all workers")
    lists_batches: bool = Field(True, description="the provider can list batches; see docs/guarantees.md where not")
    echoes_metadata: bool = Field(True, description="the provider's list shows the metadata of batches")
    resend_unanswered: bool = Field(
        False,
        description="where batches cannot be listed: repeat a create call without an answer, up to three calls; "
        "rows may be paid for each",
    )
    overdue_seconds: float | None = Field(
        None,
        ge=0,
        description="cancel a batch that has not ended so long after its window and send its rows again; "
        "0: never  [7200; azure: never]",
    )

    @property
    def patience_seconds(self) -> float | None:
        """How long to wait for a batch after its completion window; None: for ever."""
        if self.overdue_seconds is not None:
            return self.overdue_seconds or None
        return None if self.kind == "azure" else 7_200.0  # Azure goes on after the window, and documents that


class Settings(BaseSettings):
    """Names and defaults are part of the contract: see ``.env.example``."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
    )

    redis_url: SecretStr | None = Field(
        None, description="Redis for records, leases and due times; unset: a private one"
    )
    broker_url: SecretStr | None = Field(None, description="Celery's broker, where it differs from REDIS_URL")
    prefix: str = Field("{batchpipe}:", description="prefix of all keys in Redis")
    queue: str = Field("batchpipe", description="default Celery queue")
    app: str | None = Field(None, description="a site's own Celery app, for the command line: see `batchpipe -A`")
    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("batchpipe", appauthor=False)),
        description="folder of the private Redis and other local state",
    )
    workspace: str | None = Field(None, description="folder or URL for job workspaces; unset: under each job's output")
    lease_seconds: float = Field(60, gt=0, description="how long a claimed stage may go without renewal")
    sweep_seconds: float = Field(5, gt=0, description="pace of the sweep")
    poll_min_seconds: float = Field(5, gt=0, description="shortest pause between two looks at a batch")
    poll_max_seconds: float = Field(600, gt=0, le=600, description="longest pause between two looks at a batch")
    create_grace_seconds: float = Field(
        30, ge=0, description="how long to look for the batch of an unanswered create call before a second call"
    )
    files_patience_seconds: float = Field(
        21_600,
        gt=0,
        description="how long to wait for answers that a provider counts and that its files do not have; "
        "after that those rows are missing, and not sent again",
    )
    workspace_wait_seconds: float = Field(
        3_600, ge=0, description="how long to wait for a file that a job's workspace has lost: a mount may come back"
    )
    attempts: int = Field(3, ge=1, le=100, description="rounds a row may go through")
    max_rows: int = Field(50_000, ge=1, description="rows of a shard at most")
    max_bytes: int = Field(200_000_000, ge=1, description="bytes of a shard at most, newlines included")
    max_models: int = Field(100, ge=1, description="models that the rows of one job may name")
    max_shards: int = Field(100_000, ge=1, description="shards that the input of one job may make")
    allowed_roots: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated folders and URLs that inputs and outputs may lie under; unset: any"
    )
    allow_private_addresses: bool = Field(
        False, description="under ALLOWED_ROOTS, whether inputs may also lie at addresses that are not public"
    )
    max_input_bytes: int = Field(
        100_000_000_000, ge=0, description="bytes of an input at most, as they are read; 0: no limit"
    )
    max_line_bytes: int = Field(
        64_000_000, ge=0, description="bytes of one row at most, its newline included; 0: as many as a shard"
    )
    max_expansion: float = Field(
        100, ge=0, description="how many times larger a compressed input may become when unpacked; 0: no limit"
    )
    job_ttl_days: float = Field(30, gt=0, description="how long an ended job's records stay in Redis")
    log_format: Literal["text", "json"] = Field("text", description="text or json")
    control_timeout_seconds: float = Field(30, gt=0, description="time-out of one control call to the provider")
    transfer_timeout_seconds: float = Field(
        600, gt=0, description="how long the provider may take to answer an upload, or to begin a download"
    )
    transfer_bytes_per_second: float = Field(
        1_000, gt=0, description="an upload or download that is slower for a minute is broken off"
    )
    account_pause_seconds: float = Field(
        300, gt=0, description="how long an account is paused after 401, 402, 403 or insufficient_quota"
    )
    refusal_wait_seconds: float = Field(
        21_600,
        ge=0,
        description="how long to wait for a refusal to pass: no room for another file, a file that is not ready yet",
    )
    unseen_seconds: float = Field(
        86_400,
        ge=0,
        description="how long to wait, at least, for a batch or file that the account's key does not see (404); never "
        "less than to the end of the batch's window",
    )
    cancelled_elsewhere: Literal["wait", "resend", "land"] = Field(
        "wait",
        description="what a job does when a batch of it is cancelled, and not by batchpipe: send nothing more and "
        "wait for you; or send the rows again; or end with what is there",
    )
    hold_seconds: float = Field(
        604_800, gt=0, description="how long such a job waits for you; after that, what is there is collected"
    )
    delete_files: Literal["none", "strays", "inputs", "all"] = Field(
        "strays",
        description="files at the provider to delete when a job has ended: uploads that no batch used, all uploads, "
        "or the results, too",
    )
    keep_workspace: bool = Field(False, description="keep a job's shard files and downloads after it ended well")
    sandbox: bool = Field(
        False, description="try it without a key: the account `default` is a sandbox that a worker here starts"
    )
    sandbox_port: int = Field(8089, ge=1, le=65_535, description="port of that sandbox, on this machine")
    stop_seconds: float = Field(30, ge=0, description="how long a worker that is told to stop lets its tasks go on")
    flower_user: str = Field("batchpipe", description="user of `batchpipe flower`")
    flower_password: SecretStr | None = Field(
        None, description="password of `batchpipe flower`; unset: one is made and kept in the home folder"
    )
    config: Path | None = Field(
        None, description="file with the schedules, see docs/cron.md; unset: batchpipe.toml, where there is one"
    )
    schedule_seconds: float = Field(15, gt=0, description="pace at which beat looks for due schedules")
    schedules: dict[str, Schedule] = Field({}, description="what beat submits, and when")
    accounts: dict[str, Account] = Field(
        {}, description="provider accounts, BATCHPIPE_ACCOUNTS__NAME__API_KEY and so on"
    )

    # the account `default` falls back to the names that every OpenAI program knows
    openai_api_key: SecretStr | None = Field(None, validation_alias=AliasChoices("OPENAI_API_KEY"))
    openai_org_id: str | None = Field(None, validation_alias=AliasChoices("OPENAI_ORG_ID"))
    openai_project_id: str | None = Field(None, validation_alias=AliasChoices("OPENAI_PROJECT_ID"))
    openai_base_url: str | None = Field(None, validation_alias=AliasChoices("OPENAI_BASE_URL"))
    openai_webhook_secret: SecretStr | None = Field(None, validation_alias=AliasChoices("OPENAI_WEBHOOK_SECRET"))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """As usual, but a secret file may be for one field of an account: BATCHPIPE_ACCOUNTS__NAME__API_KEY."""
        nested = NestedSecretsSettingsSource(
            file_secret_settings, secrets_nested_delimiter="__", secrets_dir_missing="ok"
        )
        return init_settings, env_settings, dotenv_settings, nested, _ScheduleFile(settings_cls)

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        """Checked here, so that the checks of a site report it."""
        if value is None:
            return None
        url = value.get_secret_value()
        if (other := _other_redis(url)) is not None:
            raise ValueError(other)
        if not _is_redis_url(url):
            raise ValueError("is no Redis URL: write redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH")
        if _is_cut(url):
            raise ValueError(_CUT)
        return SecretStr(one_spelling(url))

    @field_validator("broker_url")
    @classmethod
    def _is_broker(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value()
        if (other := _other_redis(url)) is not None:
            raise ValueError(other)
        if _is_cut(url):
            raise ValueError(_CUT)
        return SecretStr(one_spelling(url))

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("accounts")
    @classmethod
    def _lower_names(cls, value: dict[str, Account]) -> dict[str, Account]:
        return {name.lower(): account for name, account in value.items()}  # variable names ignore case

    @field_validator("schedules")
    @classmethod
    def _plain_names(cls, value: dict[str, Schedule]) -> dict[str, Schedule]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
                raise ValueError(f"{name!r} is no name: letters, digits, dots, dashes and underscores, at most 64")
        return value

    #: How a site spells our names; None if there is no site.
    _spell: Callable[[str], str] | None = PrivateAttr(None)
    _unknown: tuple[str, ...] = PrivateAttr(())

    @property
    def unknown(self) -> tuple[str, ...]:
        """A warning line for each variable that begins with BATCHPIPE_ and is not a setting: likely a typing error."""
        return self._unknown

    def account(self, name: str) -> Account:
        """The account of this name, ready for use. Raises SettingsError that names the variable to set."""
        of_site = f"its API_KEY in {self._spell('ACCOUNTS')}, or " if self._spell else ""
        found = self.accounts.get(name.lower())
        if name.lower() == "default":
            found = self._default_account(found or Account())
        if found is None:
            raise SettingsError(
                f"account {name!r} is not in the settings{self._alike(name)}: "
                f"set {of_site}{PREFIX}ACCOUNTS__{name.upper()}__API_KEY",
                code="no_account",
            )
        if found.api_key is None or not found.api_key.get_secret_value():
            also = " (or OPENAI_API_KEY)" if name.lower() == "default" else ""
            raise SettingsError(
                f"account {name!r} has no API key{self._alike(name)}: "
                f"set {of_site}{PREFIX}ACCOUNTS__{name.upper()}__API_KEY{also} in the environment or in .env",
                code="no_api_key",
            )
        if found.kind == "azure" and not (found.base_url or (found.azure_endpoint and found.api_version)):
            raise SettingsError(
                f"account {name!r} is of kind azure: set {PREFIX}ACCOUNTS__{name.upper()}__AZURE_ENDPOINT "
                "and __API_VERSION"
            )
        return found

    def _alike(self, name: str) -> str:
        """An account that was probably meant by this name."""
        near = get_close_matches(name.lower(), [other for other in self.accounts if other != name.lower()], n=1)
        return f" (there is one named {near[0]!r})" if near else ""

    def _default_account(self, found: Account) -> Account:
        if self.sandbox:
            url = f"http://127.0.0.1:{self.sandbox_port}/v1"
            return Account(base_url=url, api_key=SecretStr("sandbox"), sandbox=True, looks_per_second=100.0)
        fallbacks = {
            "api_key": self.openai_api_key,
            "organization": self.openai_org_id,
            "project": self.openai_project_id,
            "base_url": self.openai_base_url,
            "webhook_secret": self.openai_webhook_secret,
        }
        missing = {field: value for field, value in fallbacks.items() if getattr(found, field) is None and value}
        return found.model_copy(update=missing)

    def is_sandbox(self, name: str) -> bool:
        """True if nothing that happens on this account costs money."""
        found = self.accounts.get(name.lower())
        tried = self.sandbox and name.lower() == "default"
        return tried or name == SANDBOX_ACCOUNT or (found is not None and found.sandbox)

    def is_openai(self, name: str) -> bool:
        """True if this account is OpenAI itself, so that its prices are known."""
        if self.sandbox and name.lower() == "default":
            return False
        found = self.accounts.get(name.lower(), Account())
        url = found.base_url or (self.openai_base_url if name.lower() == "default" else None)
        return found.kind == "openai" and (url is None or "//api.openai.com" in url)

    def roots(self) -> tuple[str, ...]:
        """The folders that inputs and outputs may lie under (none: anywhere); our own places are always allowed."""
        if not self.allowed_roots:
            return ()
        return (*self.allowed_roots, str(self.home), *([self.workspace] if self.workspace else []))

    @property
    def ttl_seconds(self) -> int:
        return int(self.job_ttl_days * 86_400)

    def redis_address(self) -> str:
        """The Redis URL in clear. Raises SettingsError if none is set (see local_redis)."""
        if self.redis_url is None:
            raise SettingsError(f"{PREFIX}REDIS_URL is not set")
        return self.redis_url.get_secret_value()

    def broker_address(self) -> str:
        """The broker's URL in clear; Redis unless BROKER_URL says otherwise."""
        return self.broker_url.get_secret_value() if self.broker_url is not None else self.redis_address()

    def with_redis(self, url: str) -> Settings:
        """The same settings, with the private Redis filled in."""
        return self.model_copy(update={"redis_url": SecretStr(url)})


#: Values for how a client of Redis checks the server's certificate, as redis-py and Celery's transport spell them.
_CERT_REQS = ("required", "optional", "none")
#: Part of a URL's scheme -> why that way to reach Redis is refused.
_OTHER_REDIS = {
    "sentinel": "Sentinel is not supported: give a name or address that leads to the primary",
    "cluster": "Redis Cluster is not supported: give a single Redis or Valkey server",
}


def _other_redis(url: str) -> str | None:
    """The error message for a URL for Sentinel or Cluster, in any spelling; None for others."""
    scheme = url.partition("://")[0].lower()
    return next((said for name, said in _OTHER_REDIS.items() if name in scheme), None)


def one_spelling(url: str) -> str:
    """A URL with TLS (``rediss://``) as redis-py and Celery's transport both read it.

    They spell the checks of the server's certificate differently. By default one of them checks everything and the
    other nothing; here the default is ``required``. Raises ValueError for values that neither knows.
    """
    address, _, query = url.partition("?")
    if not address.lower().startswith("rediss://"):
        return url
    pairs = parse_qsl(query, keep_blank_values=True)
    given = [value for name, value in pairs if name == "ssl_cert_reqs"]
    wanted = given[-1].lower().removeprefix("cert_") if given else "required"
    if wanted not in _CERT_REQS:
        raise ValueError("ssl_cert_reqs is none of required, optional and none (or CERT_REQUIRED and so on)")
    others = [(name, value) for name, value in pairs if name != "ssl_cert_reqs"]
    return f"rediss://{address[9:]}?{urlencode([*others, ('ssl_cert_reqs', wanted)], safe='/:')}"


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("redis", "rediss", "unix") and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number
        return False


_CUT = "has a password that cuts it: write its @, / and # as %40, %2F and %23"


def _is_cut(url: str) -> bool:
    """Whether a TCP address has an ``@`` in its path: part of the password would be taken for the host, and shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("redis", "rediss") and "@" in parts.path + parts.fragment


class _ScheduleFile(PydanticBaseSettingsSource):
    """The tables ``[schedules.NAME]`` of batchpipe.toml. Paths in it are relative to its folder."""

    def __call__(self) -> dict[str, Any]:
        named = self.current_state.get("config")
        path = Path(named or "batchpipe.toml").expanduser()
        if named and not path.is_file():
            raise SettingsError(f"{PREFIX}CONFIG: there is no file {named}")
        try:
            data = TomlConfigSettingsSource(self.settings_cls, path).toml_data
        except (ValueError, OSError) as error:
            raise SettingsError(f"{path}: cannot be read: {error}") from None
        if others := sorted(data.keys() - {"schedules"}):
            raise SettingsError(f"{path}: {others[0]}: only [schedules.NAME] tables belong here; see docs/settings.md")
        return {"schedules": _below(path.absolute().parent, data["schedules"])} if data else {}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # called only for sources that go field by field


def _below(folder: Path, schedules: Any) -> Any:
    """Schedules with local paths that do not depend on where a worker was started."""
    if not isinstance(schedules, dict):
        return schedules
    base = str(folder).replace("{", "{{").replace("}", "}}")

    def rooted(field: str, value: Any) -> Any:
        places = field in ("input", "output") and isinstance(value, str) and value
        return value if not places or "://" in value or value.startswith(("/", "~")) else f"{base}/{value}"

    return {
        name: {field: rooted(field, value) for field, value in parts.items()} if isinstance(parts, dict) else parts
        for name, parts in schedules.items()
    }


_SECRETS_DIR = Path("/run/secrets")


def load_settings(*, env_file: str | Path | None = "", given: SiteSettings | None = None) -> Settings:
    """Read the environment, a file of variables and secret files; values that a site has ``given`` override them.

    ``env_file``: "" means the file that ENV_FILE names, ``.env`` if that is not set, and none if it is set to "".

    Raises SettingsError: one line that names the variable, spelled as where it was set.
    """
    secrets = os.environ.get(f"{PREFIX}SECRETS_DIR") or (_SECRETS_DIR if _SECRETS_DIR.is_dir() else None)
    site, env_file = given or SiteSettings({}, str), _env_file() if env_file == "" else env_file
    try:
        where: dict[str, Any] = {"_env_file": env_file, "_env_file_encoding": "utf-8", "_secrets_dir": secrets}
        settings = Settings(**where, **site.known(Settings.model_fields))
    except ValidationError as error:
        parts = error.errors(include_input=False)
        names = site.known(Settings.model_fields).keys()
        raise SettingsError("; ".join(_explain(part, site, names) for part in parts)) from None
    except (ValueError, OSError) as error:  # a .env that is not UTF-8, or invalid JSON
        raise SettingsError(f"the settings cannot be read: {error}") from None
    settings._spell = given.spell if given is not None else None
    settings._unknown = _unknown_names(env_file)
    return settings


def _env_file() -> str | None:
    """Raises SettingsError if a named file does not exist: else other settings than intended would apply."""
    named = os.environ.get(f"{PREFIX}ENV_FILE")
    if named and not Path(named).expanduser().is_file():
        raise SettingsError(f"{PREFIX}ENV_FILE: there is no file {named}")
    return ".env" if named is None else str(Path(named).expanduser()) if named else None


#: Variables that are read elsewhere, or that others set: Kubernetes for a service of this name.
_ELSEWHERE = frozenset({"ENV_FILE", "SECRETS_DIR", "SANDBOX_UPSTREAM_KEY"})
_OF_KUBERNETES = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")
#: At most so many are named: the rest is shown when these are corrected.
_MOST_UNKNOWN = 10


def _unknown_names(env_file: str | Path | None) -> tuple[str, ...]:
    """A line for each variable, of the environment or of ``.env``, that looks like a setting and is not one."""
    fields = [name.upper() for name in Settings.model_fields if not name.startswith("openai_")]
    names = {name.upper() for name in [*os.environ, *dotenv_values(env_file or os.devnull, encoding="utf-8")]}
    lines = []
    for name in sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)):
        if name.partition("__")[0] in fields or name in _ELSEWHERE or _OF_KUBERNETES.fullmatch(name[:200]):
            continue
        near = get_close_matches(name.partition("__")[0][:100], fields, n=1)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        lines.append(f"{PREFIX}{name[:100]}: there is no such setting{hint}")
    return tuple(lines[:_MOST_UNKNOWN])


def _explain(part: Mapping[str, Any], given: SiteSettings, names: Collection[str]) -> str:
    """One validation error without the value, which may be a secret."""
    steps, message = [str(step) for step in part["loc"]], part["msg"].removeprefix("Value error, ")
    if part["type"] == "extra_forbidden":
        near = get_close_matches(
            steps[-1], Account.model_fields if steps[0] == "accounts" else Schedule.model_fields, 1
        )
        message = f"there is no such setting{f'; did you mean {near[0]}?' if near else ''}"
    if part["type"] == "missing":
        message = "is missing"
    if steps and steps[0] in names:
        return f"{given.spell(steps[0].upper())}{''.join(f'[{step!r}]' for step in steps[1:])}: {message}"
    if steps[:1] == ["schedules"]:
        return f"{'.'.join(steps)}: {message}"
    name = "__".join(steps).upper()
    return f"{name if name.startswith('OPENAI_') else PREFIX + name}: {message}"


_installed: Settings | None = None
_reading = threading.RLock()


def install_settings(settings: Settings | None) -> None:
    """Make these the settings of this process (None: read them again at the next use)."""
    global _installed
    _installed = settings


def install_site(read: Callable[[], Settings] | None) -> None:
    """Read the settings of this process by this function at their next use (None: from the environment).

    Errors that it raises appear at the use of the settings, so that a site starts and its checks can report them.
    """
    seams.site = read
    install_settings(None)


def current_settings() -> Settings:
    """The settings of the calling site, else of this process: those installed, else read now and kept."""
    if seams.settings_here is not None:
        here: Settings | None = seams.settings_here()
        if here is not None:
            return here
    with _reading:  # two threads of a web server must not use two different readings
        if _installed is None:
            install_settings((seams.site or load_settings)())
        assert _installed is not None
        return _installed


#: Variables that the HTTP client reads by itself; also in lower case.
_TRANSPORT = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def transport_environment() -> dict[str, str]:
    """The variables that the HTTP client reads by itself, spelled as they are set. Values may hold passwords."""
    names = [spelled for name in _TRANSPORT for spelled in (name, name.lower())]
    return {name: value for name in names if (value := os.environ.get(name))}


def bare_environment() -> dict[str, str]:
    """The variables that a helper process needs, and none that may be a secret."""
    wanted = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in wanted if name in os.environ}


def is_path_safe() -> bool:
    """Whether modules must not be imported from the current folder. Our own ``-P``, for the worker of a ``run``, does
    not count.
    """
    return bool(os.environ.get("PYTHONSAFEPATH"))


def use_sandbox() -> None:
    """Make the account ``default`` of this process, and of those that it starts, a sandbox: as if SANDBOX were set."""
    os.environ[f"{PREFIX}SANDBOX"] = "true"
    install_settings(None)
    if seams.read_again is not None:
        seams.read_again()


def sandbox_upstream_key() -> str | None:
    """The key of ``sandbox --upstream``: from the environment, because others can read command lines."""
    return os.environ.get(f"{PREFIX}SANDBOX_UPSTREAM_KEY")


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment of a child process (a worker): ours, with the Redis and other values that we found.

    An environment is private to the user; secrets must not be in process arguments, which everybody can read.
    """
    ours = {f"{PREFIX}REDIS_URL": settings.redis_address(), f"{PREFIX}HOME": str(settings.home)}
    return {**os.environ, **ours, **{f"{PREFIX}{name}": value for name, value in extra.items()}}
