"""The settings of one target of notifications."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from batchpipe.config.web_urls import checked_web_url
from batchpipe.model.notifications import signing_key

#: What is told: a job has ended, a job needs somebody, an account is paused.
NewsType = Literal["job.ended", "job.trouble", "account.paused"]
NEWS_TYPES: tuple[NewsType, ...] = ("job.ended", "job.trouble", "account.paused")


_ADDRESS = re.compile(r"[^@\s<>]@[^@\s<>]")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def checked_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of targets and URLs, as NOTIFY has them. Raises ValueError, which contains no URL: it may be a secret."""
    for name in names:
        if "://" in name:
            checked_web_url(name, "the name of a target, or https://HOST/PATH")
        elif not _NAME.fullmatch(name):
            raise ValueError("has what is neither the name of a target nor a URL")
    return names


class Target(BaseModel):
    """Where notifications go. Records and messages have its name; its address and secret stay in the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["webhook", "slack", "mail"] = Field("webhook", description="webhook (signed), slack or mail")
    url: SecretStr | None = Field(None, description="webhook, slack: the URL that is posted to")
    secret: SecretStr | None = Field(None, description="webhook: signs what is sent, `whsec_` and base64")
    to: Annotated[tuple[str, ...], NoDecode] = Field((), description="mail: comma-separated addresses")
    events: Annotated[tuple[NewsType, ...], NoDecode] = Field(
        NEWS_TYPES, description="comma-separated: job.ended, job.trouble, account.paused"
    )

    @field_validator("to", "events", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _is_of_the_web(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            checked_web_url(value.get_secret_value(), "https://HOST/PATH")
        return value

    @field_validator("secret")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            signing_key(value.get_secret_value())
        return value

    @field_validator("to")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if not _ADDRESS.search(one)]:
            raise ValueError(f"{wrong[0]!r} is no mail address: write NAME@HOST, several with commas between them")
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Target:
        if self.kind == "mail" and not self.to:
            raise ValueError("a target of kind mail needs TO, comma-separated addresses")
        if self.kind != "mail" and self.url is None:
            raise ValueError(f"a target of kind {self.kind} needs URL")
        if self.kind == "webhook" and self.secret is None:
            raise ValueError("a target of kind webhook needs SECRET: receivers check the signature with it")
        return self
