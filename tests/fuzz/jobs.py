"""What jobs of these tests are run with: the wire, and rows."""

from __future__ import annotations

import os
from typing import Any

from pydantic import SecretStr

from batchpipe.config.account import Account
from batchpipe.provider import Api
from tests.fuzz.wire import Wire

#: Files are synced to disk, which would be most of the time of a job.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Line:
    """The real Api and the wire it asks, for all jobs: to open new ones costs more than a job."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.api, self.second = self._api("sk-fuzz"), self._api("sk-second")

    def _api(self, key: str) -> Api:
        account = Account(api_key=SecretStr(key), base_url=f"{self.wire.url}/v1")
        return Api(account, control_seconds=10.0, transfer_seconds=10.0)

    def close(self) -> None:
        self.api.close()
        self.second.close()
        self.wire.close()


def rows_of(count: int) -> list[dict[str, Any]]:
    body = {"model": "m", "messages": []}
    return [{"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(count)]
