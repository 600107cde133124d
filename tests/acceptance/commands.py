"""What a child of the forkserver does in the acceptance tests."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import threading
from importlib import import_module
from typing import Any, cast

#: Beside what every worker needs.
_IMPORTED = (
    "openai",
    "batchpipe.cli",
    *(f"batchpipe.cli.{name}" for name in ("common", "doctor", "jobs", "run", "status")),
)
for _name in _IMPORTED:
    import_module(_name)


def command(words: list[str]) -> None:
    """``python -m batchpipe WORDS...``, from the current folder."""
    sys.argv = ["batchpipe", *words]
    sys.path[0] = os.getcwd()
    interpreter: Any = (cast(Any, threading)._shutdown, cast(Any, atexit)._run_exitfuncs)
    try:
        runpy.run_module("batchpipe", run_name="__main__", alter_sys=True)
    finally:
        for ending in interpreter:  # as Python does at its end
            ending()
