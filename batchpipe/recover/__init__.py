"""``batchpipe recover``: records that Redis has lost, rebuilt from the workspaces and the provider's lists."""

from batchpipe.recover.discovery import find_noted
from batchpipe.recover.loss import lost_jobs
from batchpipe.recover.ownership import Owners
from batchpipe.recover.recovery import recover
from batchpipe.recover.report import FINE, FOREIGN, Report, Skipped

__all__ = ["FINE", "FOREIGN", "Owners", "Report", "Skipped", "find_noted", "lost_jobs", "recover"]
