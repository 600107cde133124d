"""The settings of one target of notifications."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

#: What is told: a job has ended, a job needs somebody, an account is paused.
NewsType = Literal["job.ended", "job.trouble", "account.paused"]
NEWS_TYPES: tuple[NewsType, ...] = ("job.ended", "job.trouble", "account.paused")


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

    @model_validator(mode="after")
    def _is_complete(self) -> Target:
        if self.kind == "mail" and not self.to:
            raise ValueError("a target of kind mail needs TO, comma-separated addresses")
        if self.kind != "mail" and self.url is None:
            raise ValueError(f"a target of kind {self.kind} needs URL")
        if self.kind == "webhook" and self.secret is None:
            raise ValueError("a target of kind webhook needs SECRET: receivers check the signature with it")
        return self
