"""All settings: read once, at the edge (a command, a worker, a program's first call), and passed down as values."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, Field, PrivateAttr, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from batchpipe.config.account import SANDBOX_ACCOUNT, Account
from batchpipe.config.environment import PREFIX
from batchpipe.config.redis_urls import checked_broker_url, checked_redis_url
from batchpipe.config.schedule_file import ScheduleFile
from batchpipe.config.target import Target, checked_names
from batchpipe.config.web_urls import checked_web_url
from batchpipe.errors import SettingsError
from batchpipe.model.notifications import signing_key
from batchpipe.model.schedule import Schedule
from batchpipe.model.webhooks import secrets_of

#: An account of which the settings say nothing.
_UNKNOWN = Account()


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
    polls_in_flight: int = Field(
        50,
        ge=0,
        description="batches of an account in flight up to which each is polled; with more, its list is read for all",
    )
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
    delete_files: Literal["none", "unused", "inputs", "all"] = Field(
        "unused",
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
    targets: dict[str, Target] = Field(
        {}, description="where notifications go, BATCHPIPE_TARGETS__NAME__URL and so on; see docs/notifications.md"
    )
    notify: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated targets that are told of every job and account"
    )
    notify_secret: SecretStr | None = Field(
        None, description="signs what is sent to URLs that jobs name, `whsec_` and base64; unset: those are not sent"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated hosts that notifications may go to, also *.example.com; unset: any public "
        "address. One that is named in full may have a private address",
    )
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
        return init_settings, env_settings, dotenv_settings, nested, ScheduleFile(settings_cls)

    @field_validator("allowed_roots", "notify", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("poll_max_seconds")
    @classmethod
    def _is_longest(cls, value: float, info: ValidationInfo) -> float:
        """Where only the longest is given it bounds the shortest, too."""
        shortest = info.data.get("poll_min_seconds", value)
        if shortest > value and shortest != cls.model_fields["poll_min_seconds"].default:
            raise ValueError(
                f"the longest pause, {value:g} s, is shorter than the shortest: lower POLL_MIN_SECONDS "
                f"({shortest:g} s) or raise this"
            )
        return value

    @field_validator("notify")
    @classmethod
    def _can_be_told(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_names(value)

    @field_validator("notify_secret")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            signing_key(value.get_secret_value())
        return value

    @field_validator("openai_base_url")
    @classmethod
    def _is_of_the_web(cls, value: str | None) -> str | None:
        return checked_web_url(value, "https://HOST/v1") if value else None

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        """Checked here, so that the checks of a site report it."""
        return None if value is None else SecretStr(checked_redis_url(value.get_secret_value()))

    @field_validator("broker_url")
    @classmethod
    def _is_broker(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else SecretStr(checked_broker_url(value.get_secret_value()))

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("accounts", "targets")
    @classmethod
    def _lower_names(cls, value: dict[str, Any]) -> dict[str, Any]:
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
    _durable: bool = PrivateAttr(True)

    @property
    def unknown(self) -> tuple[str, ...]:
        """A warning line for each variable that begins with BATCHPIPE_ and is not a setting: likely a typing error; and
        for each line of the file of variables that cannot be read."""
        return self._unknown

    def account(self, name: str) -> Account:
        """The account of this name, ready for use. Raises SettingsError that names the variable to set."""
        found = self.accounts.get(name.lower())
        if name.lower() == "default":
            found = self._default_account(found or Account())
        if found is None:
            raise self._no_account(name)
        if found.api_key is None or not found.api_key.get_secret_value():
            also = " (or OPENAI_API_KEY)" if name.lower() == "default" else ""
            raise SettingsError(
                f"account {name!r} has no API key{self._alike(name)}: "
                f"set {self._of_site()}{PREFIX}ACCOUNTS__{name.upper()}__API_KEY{also} in the environment or in .env",
                code="no_api_key",
            )
        if found.kind == "azure" and not (found.base_url or (found.azure_endpoint and found.api_version)):
            raise SettingsError(
                f"account {name!r} is of kind azure: set {PREFIX}ACCOUNTS__{name.upper()}__AZURE_ENDPOINT "
                "and __API_VERSION"
            )
        return found

    def check_known(self, name: str) -> None:
        """Raises SettingsError for an account of which the settings say nothing; its key may be elsewhere."""
        if name.lower() not in {"default", SANDBOX_ACCOUNT, *self.accounts}:
            raise self._no_account(name)

    def _no_account(self, name: str) -> SettingsError:
        return SettingsError(
            f"account {name!r} is not in the settings{self._alike(name)}: "
            f"set {self._of_site()}{PREFIX}ACCOUNTS__{name.upper()}__API_KEY",
            code="no_account",
        )

    def _of_site(self) -> str:
        return f"its API_KEY in {self._spell('ACCOUNTS')}, or " if self._spell else ""

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
        if self.openai_base_url and found.has_base_url_of_profile():
            missing["base_url"] = self.openai_base_url
        return found.model_copy(update=missing)

    def webhook_secrets(self) -> dict[str, tuple[str, ...]]:
        """Account -> its webhook secrets in clear, for those that have some. Raises SettingsError."""
        found = {name: account.webhook_secret for name, account in self.accounts.items()}
        found["default"] = found.get("default") or self.openai_webhook_secret
        try:
            secrets = {name: secrets_of(secret.get_secret_value()) for name, secret in found.items() if secret}
        except ValueError as error:  # those of accounts were checked when they were read
            raise SettingsError(f"OPENAI_WEBHOOK_SECRET: {error}") from None
        return {name: several for name, several in secrets.items() if several}

    def known_account(self, name: str) -> Account:
        """What the settings say of an account, also where this process does not have its key."""
        return self.accounts.get(name.lower(), _UNKNOWN)

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

    @property
    def durable(self) -> bool:
        """False if Redis is a private one that loses everything when it stops."""
        return self._durable

    def with_redis(self, url: str, *, durable: bool = True) -> Settings:
        """The same settings, with the private Redis filled in."""
        copied = self.model_copy(update={"redis_url": SecretStr(url)})
        copied._durable = durable
        return copied
