"""A model without a table, so that the admin has a page for jobs and its permissions can be given to groups.

Jobs are in Redis, and nowhere else; see ``admin.py``.
"""

from __future__ import annotations

from typing import Any

from django.db import models


class NoRows(models.Manager):
    """Returns an empty result to every query, without a database: ``dumpdata`` reads this model, too."""

    def get_queryset(self) -> Any:
        return super().get_queryset().none()


class Job(models.Model):
    """What the admin calls a job; ``batchpipe.Job`` is the one to use."""

    id = models.CharField("job", primary_key=True, max_length=64)
    name = models.CharField(max_length=255)

    objects = NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change")
        verbose_name = "job"
        verbose_name_plural = "jobs"

    def __str__(self) -> str:
        return f"{self.name} ({self.id})" if self.name else str(self.id)
