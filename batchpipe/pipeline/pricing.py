"""Which prices count for the rows of an account."""

from __future__ import annotations

from batchpipe.config.settings import Settings
from batchpipe.telemetry.prices import Pricer, free, openai_prices, unknown


def prices_of(settings: Settings, account: str) -> Pricer:
    """Nothing in a sandbox, list prices at OpenAI, unknown ones elsewhere."""
    if settings.is_sandbox(account):
        return free
    return openai_prices() if settings.is_openai(account) else unknown
