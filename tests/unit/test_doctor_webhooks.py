"""What doctor says of webhooks: whether a secret is set, and when one came."""

from __future__ import annotations

import base64

import pytest

from batchpipe.cli.doctor import Finding, _webhooks
from batchpipe.client.client import Client
from batchpipe.config.site import current_site
from batchpipe.model.records import Stage
from tests.contract.store.protocol import claim, granted, shard, uploaded

SECRET = "whsec_" + base64.b64encode(b"d" * 32).decode()


@pytest.fixture
def client(redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", redis_url)
    monkeypatch.setenv("BATCHPIPE_PREFIX", prefix)
    return Client()


def said(client: Client) -> list[tuple[str, str]]:
    found: list[Finding] = list(_webhooks(client, "default"))
    return [(one.verdict, one.detail) for one in found]


def test_where_nobody_has_set_them_up_nothing_is_said(client: Client) -> None:
    """Most do without."""
    assert said(client) == []


def test_a_secret_without_webhooks_is_a_warning(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is none is wrong."""
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", SECRET)
    current_site().settings = None
    assert said(client) == [("warn", "default: a secret is set, and none has come yet")]
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", "sk-wrong")
    current_site().settings = None
    assert [verdict for verdict, _ in said(client)] == ["fail"]


def test_the_last_webhook_is_told_and_whether_they_are_relied_on(client: Client) -> None:
    """Those of other programs only are a sign of a wrong project."""
    client.store.news.record("evt_1", "batch_of_others", ["default"])
    assert said(client) == [("warn", "default: the last one came 0 s ago, and none was about a batch of ours")]
    job_id = uploaded(client.store)
    lease = granted(claim(client.store, job_id, 0, Stage.UPLOADED))
    client.store.shards.settle(shard(client.store, job_id), "batch_1", token=lease.token, after=9.0, changes={})
    client.store.news.record("evt_2", "batch_1", ["default"])
    ok = "default: the last one came 0 s ago; ends are awaited from them, looks are a safety net"
    assert said(client) == [("ok", ok)]
