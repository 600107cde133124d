"""The settings of one account at a provider."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from batchpipe.config.profiles import PROFILES, ProfileName, with_profile
from batchpipe.config.target import checked_names
from batchpipe.config.web_urls import checked_web_url
from batchpipe.model.admission import Kind, without_date
from batchpipe.model.webhooks import secrets_of

#: The account of ``run --sandbox``; its server runs as long as the command.
SANDBOX_ACCOUNT = "sandbox"
#: What ENQUEUED_TOKENS looks like.
_TOKENS = '{"gpt-4o-mini": 2000000}'
_WINDOW = re.compile(r"[1-9]\d{0,4}[smhd]")


class Account(BaseModel):
    """One set of provider credentials and limits. Messages contain its name, never its key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: ProfileName | None = Field(
        None,
        description="a known provider, which gives defaults for what follows: openai, azure, groq, together or qwen; "
        "see docs/providers.md",
    )
    kind: Literal["openai", "azure"] = Field("openai", description="openai (or any compatible server), or azure")
    api_key: SecretStr | None = Field(None, description="the provider's API key")
    organization: str | None = Field(None, description="OpenAI organization id")
    project: str | None = Field(None, description="OpenAI project id")
    base_url: str | None = Field(None, description="URL of an OpenAI-compatible server, with its /v1")
    webhook_secret: SecretStr | None = Field(
        None, description="secret of the provider's webhooks (whsec_...); several, comma-separated, while it is changed"
    )
    azure_endpoint: str | None = Field(None, description="azure: https://NAME.openai.azure.com")
    api_version: str | None = Field(None, description="azure: api version, such as 2025-04-01-preview")
    sandbox: bool = Field(False, description="a test server: nothing is paid, so a Redis that forgets is allowed")
    file_expires_seconds: int = Field(
        1_209_600, description="the provider may delete uploaded inputs after so long; 0: do not ask for it"
    )
    purpose: str = Field("batch", min_length=1, max_length=64, description="purpose of the files that are uploaded")
    shortest_window: str | None = Field(
        None, description="the shortest completion window that the provider takes, such as 24h"
    )
    longest_window: str | None = Field(None, description="the longest one, such as 7d")
    max_rows: int | None = Field(None, ge=1, description="rows of a shard at most, whatever a job says")
    max_bytes: int | None = Field(None, ge=1, description="bytes of a shard at most, whatever a job says")
    longest_custom_id: int | None = Field(None, ge=1, description="characters of a custom_id that the provider takes")
    looks_per_second: float = Field(5.0, gt=0, description="status reads per second, over all workers")
    lists_batches: bool = Field(True, description="the provider can list batches; see docs/guarantees.md where not")
    echoes_metadata: bool = Field(True, description="the provider's list shows the metadata of batches")
    resend_unanswered: bool = Field(
        False,
        description="where batches cannot be listed: repeat a create call without an answer, up to three calls; "
        "rows may be paid for each",
    )
    notify: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated targets that are told of its jobs and pauses"
    )
    overdue_seconds: float | None = Field(
        None,
        ge=0,
        description="cancel a batch that has not ended so long after its window and send its rows again; "
        "0: never  [7200; azure: never]",
    )
    enqueued_tokens: Annotated[dict[str, int], NoDecode] = Field(
        {},
        description="input tokens that may be in the provider's queue at once, by model, as JSON; "
        "what is not here is learned from the provider's refusals",
    )
    enqueued_tokens_default: int | None = Field(
        None, ge=1, description="the same for every other model  [unset: learned]"
    )
    batches_in_flight: int | None = Field(
        None, ge=1, description="batches that may be unfinished at once, over all models  [unset: learned]"
    )
    creations_per_hour: int = Field(2_000, ge=0, description="batches created within an hour at most; 0: any number")
    uploads_per_minute: int | None = Field(
        None, ge=1, description="files uploaded within a minute at most  [unset: learned]"
    )

    @field_validator("webhook_secret", mode="before")
    @classmethod
    def _join_secrets(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("webhook_secret")
    @classmethod
    def _are_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            secrets_of(value.get_secret_value())
        return value

    @field_validator("shortest_window", "longest_window")
    @classmethod
    def _is_window(cls, value: str | None) -> str | None:
        if value is not None and not _WINDOW.fullmatch(value):
            raise ValueError("must be a number and its unit, s, m, h or d, such as 24h")
        return value

    @field_validator("enqueued_tokens", mode="before")
    @classmethod
    def _read_tokens(cls, value: Any) -> Any:
        """Variables have it as JSON. Read here, so that what is wrong is said under the name of the variable."""
        try:
            read = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError(f"is not JSON: write {_TOKENS}") from None
        if isinstance(read, int | float):
            raise ValueError(f"is one number: ENQUEUED_TOKENS_DEFAULT is meant for that; here write {_TOKENS}")
        if not isinstance(read, dict):
            raise ValueError(f"is no JSON object: write {_TOKENS}")
        return read

    @field_validator("enqueued_tokens")
    @classmethod
    def _some_tokens(cls, value: dict[str, int]) -> dict[str, int]:
        if wrong := [model for model, tokens in value.items() if tokens < 1]:
            raise ValueError(f"{wrong[0]}: give a number of tokens above 0, or leave the model out")
        return value

    @field_validator("notify", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("notify")
    @classmethod
    def _can_be_told(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_names(value)

    @field_validator("base_url", "azure_endpoint")
    @classmethod
    def _is_of_the_web(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Checked here, so that the checks of a site report it."""
        example = "https://HOST/v1" if info.field_name == "base_url" else "https://NAME.openai.azure.com"
        return checked_web_url(value, example) if value else value

    @model_validator(mode="before")
    @classmethod
    def _with_profile(cls, given: Any) -> Any:
        return with_profile(given) if isinstance(given, Mapping) else given

    def limits(self, model: str | None) -> dict[Kind, int]:
        """What may be in use at once, or within its span, by shards of this model; what is not here is learned."""
        same = [limit for name, limit in self.enqueued_tokens.items() if without_date(name) == without_date(model)]
        tokens = min(same, default=self.enqueued_tokens_default)
        found: dict[Kind, int | None] = {
            "tokens": tokens,
            "batches": self.batches_in_flight,
            "creations": self.creations_per_hour or None,
            "uploads": self.uploads_per_minute,
        }
        return {kind: amount for kind, amount in found.items() if amount is not None}

    def was_probed(self) -> bool:
        """Whether what `batchpipe probe` finds out is set, by it or by a person."""
        return not self.model_fields_set.isdisjoint({"lists_batches", "echoes_metadata", "longest_window"})

    def has_base_url_of_profile(self) -> bool:
        """Whether its address is the one that its profile gives."""
        return self.profile is not None and self.base_url == PROFILES[self.profile].get("base_url")

    @property
    def patience_seconds(self) -> float | None:
        """How long to wait for a batch after its completion window; None: for ever."""
        if self.overdue_seconds is not None:
            return self.overdue_seconds or None
        return None if self.kind == "azure" else 7_200.0  # Azure goes on after the window, and documents that
