"""Which URLs of a Redis or a broker are right, and the one spelling in which all libraries read them."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

#: Values for how a client of Redis checks the server's certificate, as redis-py and Celery's transport spell them.
_CERT_REQS = ("required", "optional", "none")
#: Part of a URL's scheme -> why that way to reach Redis is refused.
_OTHER_REDIS = {
    "sentinel": "Sentinel is not supported: give a name or address that leads to the primary",
    "cluster": "Redis Cluster is not supported: give a single Redis or Valkey server",
}


def checked_redis_url(url: str) -> str:
    """The URL of a Redis in the one spelling. Raises ValueError."""
    if _other_redis(url) is None and not _is_redis_url(url):
        raise ValueError("is no Redis URL: write redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH")
    return checked_broker_url(url)


def checked_broker_url(url: str) -> str:
    """The URL of a broker, which may be a Redis, in the one spelling. Raises ValueError."""
    if (other := _other_redis(url)) is not None:
        raise ValueError(other)
    if _is_cut(url):
        raise ValueError("has a password that cuts it: write its @, / and # as %40, %2F and %23")
    return one_spelling(url)


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


def _is_cut(url: str) -> bool:
    """Whether a TCP address has an ``@`` in its path: part of the password would be taken for the host, and shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("redis", "rediss") and "@" in parts.path + parts.fragment
