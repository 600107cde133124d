"""Which addresses are public, and a resolver that returns only those."""

from __future__ import annotations

import ipaddress

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

from batchpipe.errors import InvalidInput

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address, in its usual form, is public; an address embedded in another one is checked, too."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def check_literal(host: str) -> None:
    """Raises InvalidInput for a host that is an address, in any form, and is not public.

    The client does not resolve what looks like a number, but leaves it to the system, which accepts several forms.
    """
    if (":" in host or host.replace(".", "").isdigit()) and not is_public(host):
        raise _private(host)


class PublicResolver(ThreadedResolver):
    """Resolves names to public addresses only; connections go to the same address that was checked."""

    async def resolve(self, host: str, *args: object, **kwargs: object) -> list[ResolveResult]:
        found = await super().resolve(host, *args, **kwargs)  # type: ignore[arg-type]
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise _private(host)
        return public


def _private(host: str) -> InvalidInput:
    return InvalidInput(
        f"{host} leads to an address that is not public; where ALLOWED_ROOTS is set, that needs "
        "ALLOW_PRIVATE_ADDRESSES=true",
        field="input",
        code="not_allowed",
    )
