"""Makes the SDK's client for an account, and imports the SDK, which takes a while, at one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchpipe.config.account import Account
from batchpipe.config.site import default_site
from batchpipe.errors import SettingsError

if TYPE_CHECKING:
    import openai


def warm_up() -> None:
    """Import the SDK now, in a process without other threads: saves the first upload half a second.

    The SDK imports itself in pieces, some at their first use. Several threads in the middle of that may deadlock, so
    the first one does all of it alone.
    """
    with default_site().lock:
        import httpx2
        import openai

        http = httpx2.Client(trust_env=False, verify=False)  # the environment may have errors
        with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1", http_client=http) as client:
            _touch(client)


def _touch(client: openai.OpenAI) -> None:
    """Create the parts that the SDK imports at their first use."""
    for part in (client.files, client.batches):
        _ = part.with_raw_response, part.with_streaming_response


def sdk_client(account: Account, control_seconds: float, http: Any) -> openai.OpenAI:
    """A client for an account over this HTTP client. Raises SettingsError for a key or address that cannot be used."""
    import httpx2
    import openai

    key = account.api_key.get_secret_value() if account.api_key else ""
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("the account's API key has characters that no key has: is it cut from somewhere else?")
    timeout = httpx2.Timeout(control_seconds, connect=min(10.0, control_seconds))
    client: openai.OpenAI
    try:
        if account.kind == "azure" and not account.base_url:
            client = openai.AzureOpenAI(
                api_key=key,
                azure_endpoint=account.azure_endpoint or "",
                api_version=account.api_version,
                max_retries=0,
                timeout=timeout,
                http_client=http,
            )
        else:
            url = account.base_url or "https://api.openai.com/v1"
            client = openai.OpenAI(api_key=key, base_url=url, max_retries=0, timeout=timeout, http_client=http)
    except (openai.OpenAIError, ValueError, httpx2.InvalidURL) as error:
        raise SettingsError(f"the provider's address is not usable: {error}") from None
    # the SDK would read these from the environment, which is for the account `default` alone
    client.organization = account.organization
    client.project = account.project
    _touch(client)
    return client
