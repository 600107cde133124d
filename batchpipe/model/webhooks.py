"""Webhooks of the provider: their signature, checked by ``standardwebhooks``, and what they say. Pure.

A webhook says only that something has happened to a batch; what, its receiver reads for itself.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from standardwebhooks import Webhook

#: Bytes of a body at most. Those of the provider have some 200.
MOST_BYTES = 65_536
#: What says that a batch has ended. Others are accepted and change nothing.
ENDS = frozenset({"batch.completed", "batch.failed", "batch.expired", "batch.cancelled"})
#: The headers of Standard Webhooks, and what each may be. The id becomes a part of a key in Redis.
HEADERS = {
    "webhook-id": re.compile(r"[\x21-\x7e]{1,200}"),
    "webhook-timestamp": re.compile(r"[0-9]{1,20}"),
    "webhook-signature": re.compile(r"[\x20-\x7e]{1,4000}"),
}
_BATCH_ID = re.compile(r"[\x21-\x7e]{1,200}")
_PREFIX, _SHORTEST = "whsec_", 16


class Malformed(ValueError):
    """No webhook of the provider: a header is missing, or the body says nothing."""


class NotSigned(ValueError):
    """The signature fits none of the secrets, or was made too long ago."""


class _Event(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class _OfBatch(msgspec.Struct):
    id: str


@dataclass(frozen=True)
class Signed:
    """A webhook with a right signature. ``batch_id``: None if it does not say that a batch has ended."""

    id: str
    accounts: tuple[str, ...]  #: those with a secret that signed it
    type: str
    batch_id: str | None


def secrets_of(text: str) -> tuple[str, ...]:
    """The secrets of an account, which are separated by commas. Raises ValueError, which does not contain them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for secret in found:
        if not _is_secret(secret):
            raise ValueError(
                f"no secret of a webhook: it begins with {_PREFIX} and goes on in base64; separate several by commas"
            )
    return found


def _is_secret(text: str) -> bool:
    """A short one could be guessed, and an empty one would let everybody sign."""
    coded = text.removeprefix(_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False
    return text.startswith(_PREFIX) and len(key) >= _SHORTEST


class Verifier:
    """Knows the secrets of all accounts. Importing the library is left to the first one."""

    def __init__(self, secrets: Mapping[str, Sequence[str]]) -> None:
        from standardwebhooks import Webhook

        owners: dict[str, list[str]] = {}  # accounts of one project at the provider have the same secret
        for account, several in secrets.items():
            for secret in several:
                owners.setdefault(secret, []).append(account)
        self._keys = [(Webhook(secret), tuple(accounts)) for secret, accounts in owners.items()]

    def check(self, body: bytes, headers: Mapping[str, str], account: str | None = None) -> Signed:
        """Check and read a webhook. ``headers`` have names in lower case; ``account``: only its secrets count.

        Raises Malformed, NotSigned.
        """
        given = {name: headers.get(name, "") for name in HEADERS}
        for name, form in HEADERS.items():
            if not form.fullmatch(given[name]):
                raise Malformed(f"the header {name} is missing, or is not one of a webhook")
        keys = [(key, owners) for key, owners in self._keys if account is None or account in owners]
        signed = {owner for key, owners in keys if _fits(key, body, given) for owner in owners}
        accounts = signed if account is None else signed & {account}
        if not accounts:
            raise NotSigned("its signature fits no secret, or was made more than five minutes ago")
        kind, batch_id = _read(body)
        return Signed(given["webhook-id"], tuple(sorted(accounts)), kind, batch_id)


def _fits(key: Webhook, body: bytes, headers: dict[str, str]) -> bool:
    """The library raises whatever its parts raise for nonsense."""
    from standardwebhooks import WebhookVerificationError

    try:
        key.verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError, TypeError, OverflowError):
        return False
    return True


def _read(body: bytes) -> tuple[str, str | None]:
    """(type, batch id or None). Raises Malformed."""
    try:
        event = msgspec.json.decode(body, type=_Event)
        batch_id = msgspec.json.decode(event.data, type=_OfBatch).id if event.type in ENDS else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Malformed("its body is not the JSON of an event") from None
    if batch_id is not None and not _BATCH_ID.fullmatch(batch_id):
        raise Malformed("the id of its batch is none")
    return event.type, batch_id
