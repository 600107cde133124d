"""Texts that people read: passwords, tokens and signatures within URLs are replaced by ``***``, control characters by
visible ones.

The texts come from users and providers, so everything here takes time in proportion to their length: they are split at
single characters, and no regular expression looks for a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

#: A text is cut to this length before it is processed.
MOST_SCANNED = 65_536
MASK = "***"

#: What ends a URL within a text. One character, so the time is linear.
_TOKENS = re.compile(r"([\s'\"<>`]+)")
_SECRET_PARTS = ("sig", "token", "key", "secret", "passw", "pwd", "credential", "auth", "session")
_SECRET_NAMES = frozenset({"code", "jwt", "sas", "pass", "pin", "otp"})
#: Schemes in which a name without a password before the host is not secret: an account, a bucket or a container.
_NAMES_BEFORE_HOST = frozenset(
    {"abfs", "abfss", "az", "wasb", "wasbs", "sftp", "ssh", "ftp", "hdfs", "webhdfs", "smb", "git+ssh"}
)


#: Characters that move the cursor, change the title or the direction of writing: names and messages are not ours.
_CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for codes in (range(9), range(10, 32), range(127, 160), range(0x2028, 0x202F), range(0x2066, 0x206A))
    for code in codes
}
#: Those that JSON does not escape; also half a surrogate pair, which no encoding accepts.
_JSON_CONTROLS = {
    code: f"\\u{code:04x}"
    for codes in (range(127, 160), range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000))
    for code in codes
}


def printable(text: str) -> str:
    """A text with its control characters escaped, so that it can forge neither terminal output nor a further line."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """A text for one line of a log or a list: masked, printable, and of 300 characters at most."""
    return printable(without_secrets(" ".join(text.split())))[:300]


def printable_json(document: str) -> str:
    """An equivalent JSON document, escaped in the same way."""
    return document.translate(_JSON_CONTROLS)


def without_secrets(text: str) -> str:
    """A text, cut to 64 KiB, with the passwords, signatures and tokens of the URLs in it replaced by ``***``."""
    text = _cut(text)
    if "@" not in text and "=" not in text:
        return text
    return "".join(_masked(token) for token in _TOKENS.split(text))


def has_secret_before_host(url: str) -> bool:
    """Whether a URL has a password, or a token that stands for one, in front of its host."""
    return any(_secret_start(scheme, rest) is not None for scheme, rest in _urls(url))


def _cut(text: str) -> str:
    if len(text) <= MOST_SCANNED:
        return text
    head = text[:MOST_SCANNED]
    # half of a URL at the end might no longer look like one
    end = max(head.rfind(" "), head.rfind("\n"))
    return (head[:end] if end > 0 else head) + " ..."


def _masked(token: str) -> str:
    if "://" in token:
        first, *rests = token.split("://")
        parts, before = [first], first
        for rest in rests:
            parts.append(_masked_rest(_scheme(before), rest))
            before = rest
        token = "://".join(parts)
    return _masked_query(token) if "=" in token else token


def _urls(text: str) -> Iterator[tuple[str, str]]:
    parts = text.split("://")
    for before, rest in pairwise(parts):
        yield _scheme(before), rest


def _scheme(before: str) -> str:
    """The scheme at the end of the text before ``://``."""
    at = len(before)
    while at and (before[at - 1].isalnum() or before[at - 1] in "+-."):
        at -= 1
    return before[at:].lower()


def _masked_rest(scheme: str, rest: str) -> str:
    start = _secret_start(scheme, rest)
    return rest if start is None else rest[:start] + MASK + rest[_userinfo_end(rest) :]


def _secret_start(scheme: str, rest: str) -> int | None:
    """Where the secret in front of the host begins, if there is one; it ends at the ``@``."""
    end = _userinfo_end(rest)
    if end <= 0:
        return None
    colon = rest.find(":", 0, end)
    if colon >= 0:
        return colon + 1 if colon + 1 < end else None
    return None if scheme in _NAMES_BEFORE_HOST else 0


def _userinfo_end(rest: str) -> int:
    """The index of the ``@`` before the host; -1 if there is none. A password may hold ``@`` itself, and ``/``."""
    ends = [at for at in (rest.find(mark) for mark in "/?#") if at >= 0]
    authority = rest[: min(ends)] if ends else rest
    if (at := authority.rfind("@")) >= 0:
        return at
    has_port = ":" in authority and not authority.endswith("]")
    # "redis://:pa/ss@host": what looks like a port is not one, so the password continues behind the slash
    return rest.rfind("@") if has_port and not authority.rpartition(":")[2].isdigit() else -1


def _masked_query(token: str) -> str:
    """``name=value`` pairs behind ``?``, ``&`` or ``#``: the value is masked if the name suggests a secret."""
    pieces = re.split(r"([?&;#])", token)
    return "".join(
        _masked_pair(piece) if number and pieces[number - 1] in ("?", "&", ";", "#") else piece
        for number, piece in enumerate(pieces)
    )


def _masked_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not equals or not value:
        return pair
    plain = name[-100:].lower()
    is_secret = plain in _SECRET_NAMES or any(part in plain for part in _SECRET_PARTS)
    return f"{name}={MASK}" if is_secret else pair
