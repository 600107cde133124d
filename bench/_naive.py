"""The peer of ``waiting.py``: one Celery task per batch that looks at it and comes back by ``self.retry``."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from openai import OpenAI

app = Celery("naive", broker=os.environ["NAIVE_BROKER"])
app.conf.worker_hijack_root_logger = False
client = OpenAI(max_retries=0, timeout=30)


@app.task(bind=True, max_retries=None)  # type: ignore[untyped-decorator]
def poll(self: Any, batch_id: str, countdown: float) -> None:
    batch = client.batches.retrieve(batch_id)
    if batch.status in ("completed", "failed", "expired", "cancelled"):
        client.files.content(batch.output_file_id or "").read()
        return
    raise self.retry(countdown=countdown)
