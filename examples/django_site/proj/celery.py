"""The site's Celery app: the five lines of Celery's own handbook, and one for batchpipe."""

import os

from celery import Celery

import batchpipe

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
batchpipe.setup(app)
