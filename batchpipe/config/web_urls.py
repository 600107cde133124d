"""Which URLs of web servers are right: checked where they are set, so that no worker meets them first."""

from __future__ import annotations

from urllib.parse import urlsplit


def checked_web_url(url: str, example: str) -> str:
    """The URL. Raises ValueError, which does not contain it: it may hold a secret."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number
        is_right = False
    if not is_right:
        raise ValueError(f"is no http:// or https:// URL: write {example}")
    return url
