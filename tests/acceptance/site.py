"""A site with a Celery app of its own, and workers of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.acceptance.user_machine import Machine, Process

#: What a team has: an app of its own, with a task and a queue of its own.
SITE = """
import os
import batchpipe
from celery import Celery

app = Celery("shop", broker=os.environ["SHOP_BROKER"])
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_soft_shutdown_timeout = 5
app.conf.update({more})
{code}
batchpipe.setup(app)

@app.task(name="shop.told")
def told(job):
    open("told", "a").write(job + " " + batchpipe.get_job(job).state + "\\n")
"""


class Shop:
    """A machine with a site on it."""

    def __init__(
        self, machine: Machine, broker: str, python: Path | None = None, code: str = "", /, **more: Any
    ) -> None:
        """Of ``more`` settings, and with ``code`` before batchpipe's line, run by this ``python``."""
        self.machine = machine
        machine.interpreter = python or machine.interpreter
        package = machine.folder / "shop"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "celery.py").write_text(SITE.replace("{more}", repr(more)).replace("{code}", code))
        machine.environment |= {"SHOP_BROKER": broker, "BATCHPIPE_APP": "shop.celery"}

    def celery(self, *arguments: str) -> Process:
        return self.machine.start_python("-m", "celery", "-A", "shop.celery", *arguments)

    def worker(self, *options: str) -> Process:
        process = self.celery("worker", "--pool", "threads", "--concurrency", "4", "--loglevel", "INFO", *options)
        self.machine.await_ready(process)
        return process

    def submit(self, *options: str, rows: int = 12, output: str = "out") -> str:
        return self.machine.submit(self.machine.input(rows=rows), *options, output=output)

    def state(self, job: str) -> str:
        return str(self.machine.json("status", job)["state"])
