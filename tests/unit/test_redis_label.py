"""Whose a job is: the label of a Redis names it, stays the same, and holds no secret."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from batchpipe.config.loading import child_environment, load_settings
from batchpipe.config.settings import Settings
from batchpipe.local_redis import acquire
from batchpipe.store.redis_label import label_of

HERE = socket.gethostname()


def settings(tmp_path: Path, url: str | None = None, **more: Any) -> Settings:
    given = {"home": tmp_path / "home", **more}
    return Settings(_env_file=None, redis_url=SecretStr(url) if url else None, **given)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://redis.lan", "redis.lan:6379/0"),
        ("redis://Redis.LAN:6380/5", "redis.lan:6380/5"),
        ("rediss://me:hidden@redis.lan:6380/5?ssl_cert_reqs=none", "redis.lan:6380/5"),
        ("redis://:hidden@redis.lan/?db=7&password=hidden", "redis.lan:6379/7"),
        ("redis://[fe80::1]:6380/5", "[fe80::1]:6380/5"),
        ("redis://localhost:6391/5", f"localhost({HERE}):6391/5"),
        ("redis://127.0.0.1:6391/5", f"localhost({HERE}):6391/5"),
        ("redis://[::1]:6391/5", f"localhost({HERE}):6391/5"),
        ("redis:///5", f"localhost({HERE}):6379/5"),
        ("unix:///run/some redis.sock?db=3&password=hidden", f"unix({HERE}):/run/some%20redis.sock/3"),
        ("unix://me:hidden@/run/redis.sock", f"unix({HERE}):/run/redis.sock/0"),
    ],
)
def test_a_label_tells_host_port_and_database_and_no_secret(tmp_path: Path, url: str, place: str) -> None:
    """What only this machine reaches names the machine: another's local Redis is another."""
    label = label_of(settings(tmp_path, url))
    assert label == f"{place} {{batchpipe}}:"
    assert "hidden" not in label


def test_each_prefix_has_a_label_of_its_own(tmp_path: Path) -> None:
    """Also one with a space in it; a label has one space only."""
    assert label_of(settings(tmp_path, "redis://h", prefix="{a b}:")) == "h:6379/0 {a%20b}:"


def test_the_private_redis_keeps_its_label_whatever_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uses it knows it: by the home folder, and the worker of a run, which is given its URL."""
    home = tmp_path / "my home"
    plain = settings(tmp_path, home=home)
    label = label_of(plain)
    assert label == f"private({HERE}):{tmp_path}/my%20home {{batchpipe}}:"
    with acquire(home) as handle:
        found = plain.with_redis(handle.server.url)
        assert label_of(found) == label
        for name, value in child_environment(found).items():
            monkeypatch.setenv(name, value)
        assert label_of(load_settings(env_file=None)) == label
        port = handle.server.url.rpartition(":")[2]
        assert label_of(settings(tmp_path, f"redis://:other@localhost:{port}", home=home)) != label
