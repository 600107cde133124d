"""``batchpipe recover``: records that Redis has lost, rebuilt from the workspaces and the provider's lists."""

from batchpipe.recover.recovery import recover
from batchpipe.recover.report import FINE, Left, Report

__all__ = ["FINE", "Left", "Report", "recover"]
