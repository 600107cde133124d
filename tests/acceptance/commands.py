"""What a child of the forkserver does in the acceptance tests."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import threading
from importlib import import_module
from typing import Any, cast

from tests.acceptance.forked_worker import Hatchery

#: Beside what every worker needs.
_IMPORTED = (
    "openai",
    "batchpipe.cli",
    *(f"batchpipe.cli.{name}" for name in ("common", "doctor", "jobs", "processes", "run", "status")),
    "batchpipe.client.local_run",
)
for _name in _IMPORTED:
    import_module(_name)

#: Commands that may start a worker of their own.
WITH_WORKER = ("run", "wait", "cancel", "retry")


def command(words: list[str]) -> None:
    """``python -m batchpipe WORDS...``, from the current folder. A worker that it starts is forked, too."""
    sys.path[0] = os.getcwd()
    if words[:1] and words[0] in WITH_WORKER:
        hatchery = Hatchery()
        words = hatchery.worker_words or words
    sys.argv = ["batchpipe", *words]
    interpreter: Any = (cast(Any, threading)._shutdown, cast(Any, atexit)._run_exitfuncs)
    try:
        runpy.run_module("batchpipe", run_name="__main__", alter_sys=True)
    finally:
        for ending in interpreter:  # as Python does at its end
            ending()
