"""batchpipe: OpenAI Batch API jobs as a crash-safe Celery pipeline. The public face; nobody imports from here.

Names are loaded at first use, so that ``import batchpipe`` costs a Django start nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchpipe.celery_site import setup
    from batchpipe.client import BatchResult, Job, cancel, get_job, list_jobs, submit
    from batchpipe.errors import (
        BatchpipeError,
        InvalidInput,
        JobNotFound,
        Never,
        OutputInUse,
        SettingsError,
        StoreUnavailable,
        TryLater,
    )
    from batchpipe.jobs import State
    from batchpipe.results import Outcome

__version__ = "0.1.0"

_HOME = {
    # Jobs
    "submit": "client",
    "get_job": "client",
    "list_jobs": "client",
    "cancel": "client",
    "Job": "client",
    "State": "jobs",
    # A site's own Celery app
    "setup": "celery_site",
    # Results
    "BatchResult": "client",
    "Outcome": "results",
    # Errors
    "BatchpipeError": "errors",
    "TryLater": "errors",
    "StoreUnavailable": "errors",
    "Never": "errors",
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
    "Never",
    "Outcome",
    "OutputInUse",
    "SettingsError",
    "State",
    "StoreUnavailable",
    "TryLater",
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
