"""Secrets within URLs are shown to nobody, and looking for them takes time in proportion to the text."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpipe.errors import MOST_MESSAGE, BatchpipeError
from batchpipe.masking import MOST_SCANNED, has_secret_before_host, without_secrets
from batchpipe.telemetry.logs import ContextFilter, JsonFormatter, TextFormatter

#: Texts that a pattern which looks ahead or back from every place takes minutes or hours for.
HOSTILE = [
    "http://x/" + "?sig" * 250_000,
    "http://" * 150_000,
    "http://a:" * 120_000,
    "&key" * 250_000 + "=",
    "http://" + "@" * 1_000_000,
    "http://x?" + "a&" * 500_000,
    "?" * 1_000_000 + "://",
    "://" * 300_000 + "@",
    "shard" + " " * 1_000_000 + "x",
    "shard " * 200_000,
    "job_" * 250_000,
    "job_" + "a" * 1_000_000,
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ghp_abc@github.com/x.jsonl", "https://***@github.com/x.jsonl"),
        ("redis://:p@ss@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://default:pa/ss@h:6379/0 is away", "redis://default:***@h:6379/0 is away"),
        ("https://h/cb?code=abc&state=1", "https://h/cb?code=***&state=1"),
        ("https://h/in?jwt=a.b.c", "https://h/in?jwt=***"),
        ("https://h/in#access_token=abc", "https://h/in#access_token=***"),
        ("at /in.jsonl?X-Amz-Signature=abc", "at /in.jsonl?X-Amz-Signature=***"),
        ("simplecache::https://u:p@h/in?token=t", "simplecache::https://u:***@h/in?token=***"),
        ("https://a?next=https://u:p@h", "https://a?next=https://u:***@h"),
    ],
)
def test_the_secret_of_a_url_is_masked(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "abfs://container@account.dfs.core.windows.net/in.jsonl",
        "sftp://deploy@host/in.jsonl",
        "https://host:8443/a@2x/in.jsonl",
        "https://[::1]:80/a@b",
        "https://h/in?page=2&limit=100",
        "line 3: custom_id: key=a",
        "ann@example.org",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert without_secrets(text) == text
    assert not has_secret_before_host(text)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_texts_are_looked_at_in_no_time(text: str) -> None:
    """A text of a megabyte is cut, and no pattern looks at it more than once: this would run for hours otherwise."""
    assert len(without_secrets(text)) <= MOST_SCANNED + 4
    has_secret_before_host(text)
    assert len(str(BatchpipeError(text))) <= MOST_MESSAGE
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO", "name": "other"})
    assert ContextFilter().filter(record)
    TextFormatter().format(record)
    JsonFormatter().format(record)


def _looks_like_a_port(secret: str) -> bool:
    """Of `redis://:SECRET@host`: what stands before its first slash could be a port."""
    return any(mark in secret for mark in "/?#") and secret.partition("/")[0].rpartition(":")[2].isdigit()


@given(
    secret=st.text("abcXYZ012%+@:/", min_size=6, max_size=30).filter(
        lambda text: "//" not in text and text[0] not in "/:@" and not _looks_like_a_port(text)
    ),
    name=st.sampled_from(["", "user", "default"]),
    before=st.sampled_from(["", "failed: ", "'", "x="]),
)
def test_a_password_of_any_shape_is_masked_in_a_redis_url(secret: str, name: str, before: str) -> None:
    assert secret not in without_secrets(f"{before}redis://{name}:{secret}@host/0")


@given(st.text(max_size=300))
def test_masking_twice_is_masking_once(text: str) -> None:
    once = without_secrets(text)
    assert without_secrets(once) == once
