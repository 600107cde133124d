"""``batchpipe recover``: records that Redis has lost, rebuilt from the workspaces and the provider's lists."""

from batchpipe.recover.discovery import lost_jobs, noted_jobs
from batchpipe.recover.ownership import Owners
from batchpipe.recover.recovery import recover
from batchpipe.recover.report import FINE, FOREIGN, Report, Skipped

__all__ = ["FINE", "FOREIGN", "Owners", "Report", "Skipped", "lost_jobs", "noted_jobs", "recover"]
