"""Sent when a job has ended, by a worker that has loaded the site, at least once: a second call must do no harm.

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
