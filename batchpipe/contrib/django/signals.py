"""Sent when a job has ended, by the worker that ended it: at least once, so a receiver must not mind a second time.

``sender`` is ``batchpipe.Job``, ``job`` the job. A receiver that raises is called again, about a minute later and for
about an hour, and so are the others: the database may be away when a job ends.
"""

from __future__ import annotations

from django.dispatch import Signal

job_succeeded = Signal()
"""Every row is ok."""
job_partial = Signal()
"""Some rows are ok, some are not."""
job_failed = Signal()
"""No row is ok, or the input was refused: ``job.error`` says why."""
job_cancelled = Signal()
"""Cancelled; ``job.results()`` has the rows that had finished."""
