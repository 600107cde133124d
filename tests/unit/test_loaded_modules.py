"""What a command that only reads loads: its start is most of the time that a person waits for it."""

from __future__ import annotations

import subprocess
import sys

#: What `list` needs: settings (pydantic), records (msgspec, orjson), Redis. Not the broker, the provider or storages.
NOT_NEEDED = (
    "celery",
    "kombu",
    "openai",
    "httpx",
    "httpx2",
    "fsspec",
    "aiohttp",
    "flower",
    "prometheus_client",
    "django",
)
READ = """
import sys
import batchpipe.cli, batchpipe.cli.jobs, batchpipe.config.loading
from batchpipe.client.client import Client
from batchpipe.config.settings import Settings
client = Client(Settings(_env_file=None, redis_url="redis://127.0.0.1:1/0"))
try:
    client.list_jobs()
except Exception as error:
    assert type(error).__name__ == "StoreUnavailable", error
print(" ".join(sorted(name for name in sys.modules if "." not in name)))
"""


SUBMIT = """
import sys
import batchpipe.cli, batchpipe.cli.jobs, batchpipe.client.submission, batchpipe.config.loading, batchpipe.tasks.runtime
from batchpipe.client.client import Client
print(" ".join(sorted(name for name in sys.modules if "." not in name)))
"""
#: What sends notifications, calls the provider or opens a URL needs these; most who submit never do.
NOT_FOR_SUBMIT = ("aiohttp", "fsspec", "openai", "httpx", "httpx2", "flower", "prometheus_client")


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_submit_loads_the_broker_and_no_http_client() -> None:
    """That of the notifications was an eighth of the command, and of the memory of each web process that submits."""
    loaded = loaded_by(SUBMIT)
    assert "celery" in loaded
    assert not set(NOT_FOR_SUBMIT) & loaded


def test_a_list_of_jobs_loads_no_broker_no_provider_and_no_storage() -> None:
    """They come with the first command that needs them."""
    loaded = loaded_by(READ)
    assert "redis" in loaded
    assert not set(NOT_NEEDED) & loaded
