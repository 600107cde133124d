"""Everything that can be set when a sandbox is started."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

#: Endpoints that `POST /v1/batches` takes.
ENDPOINTS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)


#: Stands for every model that has no limit of its own.
ANY_MODEL = "*"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a sandbox behaves. Seconds are seconds of the sandbox clock."""

    data_dir: Path | str | None = None  #: files, batches and ledger live here; None: a temporary folder
    validating_seconds: float = 0.2  #: how long a batch stays `validating`, at least
    rows_per_second: float | None = 5000.0  #: speed of each batch; None: as fast as this machine can
    finalizing_seconds: float = 0.05
    cancelling_seconds: float = 0.1
    api_keys: tuple[str, ...] | None = None  #: accepted keys; None: any that is not empty
    seed: str | None = None  #: seed of the output order and of random faults; None: the batch id
    max_rows: int = 50_000
    max_file_bytes: int = 200_000_000
    max_upload_bytes: int = 512 * 1024 * 1024
    max_embedding_inputs: int = 50_000
    enqueued_tokens: Mapping[str, int] | None = None  #: by model, or for `*`: input tokens of unfinished batches
    batches_in_flight: int | None = None  #: unfinished batches at once
    creations_per_hour: int | None = None
    uploads_per_minute: int | None = None
    any_model: bool = False  #: also accept models with names that look like a misspelled one of OpenAI's
    upstream: str | None = None  #: URL of a real OpenAI-compatible server that answers the rows
    upstream_concurrency: int = 8
    upstream_api_key: str | None = None
    upstream_timeout: float = 600.0
    upstream_tries: int = 5
    webhook_url: str | None = None  #: is told of the ends of batches
    webhook_secret: str | None = field(default=None, repr=False)  #: signs that: `whsec_` and a key in base64

    def __post_init__(self) -> None:
        if self.rows_per_second is not None and self.rows_per_second <= 0:
            raise ValueError("rows_per_second must be above 0 (None: no limit)")
        if self.upstream_concurrency < 1 or self.upstream_tries < 1:
            raise ValueError("upstream_concurrency and upstream_tries must be at least 1")
        numbers = [self.batches_in_flight, self.creations_per_hour, self.uploads_per_minute]
        if any(number is not None and number < 1 for number in [*numbers, *(self.enqueued_tokens or {}).values()]):
            raise ValueError("limits must be at least 1 (None: no limit)")
        if self.upstream is not None and not self.upstream.startswith(("http://", "https://")):
            raise ValueError(f"upstream must be an http:// or https:// URL, not {self.upstream!r}")
        if self.webhook_url is not None:
            self._check_webhook(self.webhook_url)

    def _check_webhook(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"webhook_url must be an http:// or https:// URL, not {url!r}")
        secret = self.webhook_secret or ""
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith("whsec_") or not key:
            raise ValueError("webhook_secret must be whsec_ and a key in base64; webhook_url needs one")


class OptionArgs(TypedDict, total=False):
    """The fields of `Options` as keyword arguments (a test holds the two equal)."""

    data_dir: Path | str | None
    validating_seconds: float
    rows_per_second: float | None
    finalizing_seconds: float
    cancelling_seconds: float
    api_keys: tuple[str, ...] | None
    seed: str | None
    max_rows: int
    max_file_bytes: int
    max_upload_bytes: int
    max_embedding_inputs: int
    enqueued_tokens: Mapping[str, int] | None
    batches_in_flight: int | None
    creations_per_hour: int | None
    uploads_per_minute: int | None
    any_model: bool
    upstream: str | None
    upstream_concurrency: int
    upstream_api_key: str | None
    upstream_timeout: float
    upstream_tries: int
    webhook_url: str | None
    webhook_secret: str | None


#: How commands call what they set here.
_OF_COMMANDS = {
    "webhook_secret": "BATCHPIPE_SANDBOX_WEBHOOK_SECRET",
    "webhook_url": "--webhook-url",
    "rows_per_second": "--rows-per-second",
    "upstream": "--upstream",
}


def in_words_of_commands(message: str) -> str:
    """The message of a ValueError of ``Options``, with the names that the user of a command knows."""
    first, space, rest = message.partition(" ")
    rest = rest.replace("; webhook_url needs one", "; --webhook-url needs one")
    return f"{_OF_COMMANDS.get(first, first)}{space}{rest}"


def token_limits(texts: Sequence[str]) -> dict[str, int] | None:
    """`enqueued_tokens` as commands take it: each a number, for every model, or MODEL=NUMBER. Raises ValueError."""
    limits: dict[str, int] = {}
    for text in texts:
        model, _, number = text.rpartition("=")
        if not number.isdecimal() or not 0 < len(number) < 16:
            raise ValueError(f"{text!r} is not a number of tokens, nor MODEL=NUMBER")
        limits[model or ANY_MODEL] = int(number)
    return limits or None
