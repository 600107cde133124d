"""A site with a Celery app of its own, as a user would write it. Its worker runs batchpipe's shared tasks, too."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

import batchpipe.tasks.celery_tasks  # noqa: F401 - shared tasks become tasks of the app

app = Celery("shop", broker=os.environ["BATCHPIPE_REDIS_URL"])
app.conf.task_default_queue = "shop"
app.conf.worker_hijack_root_logger = False
app.set_default()


@app.task(name="shop.done")  # type: ignore[untyped-decorator]
def done(*arguments: object) -> None:
    """Note what the job has told."""
    with Path(os.environ["HOME"], "told.txt").open("a") as file:
        file.write(" ".join(map(str, arguments)) + "\n")
