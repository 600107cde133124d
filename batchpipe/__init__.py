"""batchpipe: OpenAI Batch API jobs as a crash-safe Celery pipeline. The public names, for users only.

Names are loaded at first use, so that ``import batchpipe`` costs a Django start nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchpipe.client.client import Job, cancel, get_job, list_jobs, submit
    from batchpipe.errors import (
        BatchpipeError,
        InvalidInput,
        JobNotFound,
        OutputInUse,
        PermanentError,
        SettingsError,
        StoreUnavailable,
        TransientError,
    )
    from batchpipe.model.outcome import Outcome
    from batchpipe.model.records import State
    from batchpipe.pipeline.results import BatchResult
    from batchpipe.worker.setup import setup

__version__ = "0.1.0"

_HOME = {
    # Jobs
    "submit": "client.client",
    "get_job": "client.client",
    "list_jobs": "client.client",
    "cancel": "client.client",
    "Job": "client.client",
    "State": "model.records",
    # A site's own Celery app
    "setup": "worker.setup",
    # Results
    "BatchResult": "pipeline.results",
    "Outcome": "model.outcome",
    # Errors
    "BatchpipeError": "errors",
    "TransientError": "errors",
    "StoreUnavailable": "errors",
    "PermanentError": "errors",
    "InvalidInput": "errors",
    "JobNotFound": "errors",
    "OutputInUse": "errors",
    "SettingsError": "errors",
}

__all__ = [
    "BatchResult",
    "BatchpipeError",
    "InvalidInput",
    "Job",
    "JobNotFound",
    "Outcome",
    "OutputInUse",
    "PermanentError",
    "SettingsError",
    "State",
    "StoreUnavailable",
    "TransientError",
    "cancel",
    "get_job",
    "list_jobs",
    "setup",
    "submit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'batchpipe' has no attribute {name!r}")
    value = getattr(import_module(f"batchpipe.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
