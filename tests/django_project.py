"""One Django site for the tests: configured once per process, for Django's settings are one per process.

Celery must not take the other tests of the process for a Django site, so no variable names a settings module.
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.test import override_settings

APPS = ["admin", "auth", "contenttypes", "sessions", "messages", "staticfiles"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
PROCESSORS = [
    "django.template.context_processors.request",
    "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
]


def configure(database: dict[str, Any] | None = None) -> None:
    """Set Django up with its tables, once."""
    if settings.configured:
        return
    folder = Path(tempfile.mkdtemp(prefix="batchpipe-django-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3"), "OPTIONS": {"timeout": 30}}
    settings.configure(
        SECRET_KEY="not-a-secret",
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": database or sqlite, "other": {**sqlite, "NAME": str(folder / "other.sqlite3")}},
        INSTALLED_APPS=[*(f"django.contrib.{name}" for name in APPS), "batchpipe.contrib.django"],
        MIDDLEWARE=MIDDLEWARE,
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": PROCESSORS},
            }
        ],
        ROOT_URLCONF="tests.django_urls",
        STATIC_URL="static/",
        MEDIA_ROOT=str(folder / "media"),
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from tests.django_models import Note, Upload

    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        for model in (Note, Upload):
            editor.create_model(model)
    connection.close()


@contextmanager
def site(redis_url: str, prefix: str, home: Path, **more: Any) -> Iterator[None]:
    """The site with these settings of batchpipe, and batchpipe hung into Django; the fixtures unhook it again."""
    from django.apps import apps
    from django.db import connections

    from batchpipe.contrib.django.apps import BatchpipeConfig

    values = {"REDIS_URL": redis_url, "PREFIX": prefix, "HOME": home, **more}
    with override_settings(BATCHPIPE=values):
        config = apps.get_app_config("batchpipe")
        assert isinstance(config, BatchpipeConfig)
        config.install()
        yield
    connections.close_all()


def requests(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Tell of {number}"}]}
        yield {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def land(folder: Path, *refused: str) -> None:
    """Run all jobs to their end and tell; the provider refuses these rows."""
    from batchpipe.client.client import default_client
    from batchpipe.tasks.notifying import notify
    from batchpipe.testing import FakeOpenAI, Pump
    from batchpipe.testing.things import polite_answer

    api = FakeOpenAI(autofinish=True)
    api.answer = lambda row: 400 if row["custom_id"] in refused else polite_answer(row)
    Pump(folder, api=api, store=default_client().store, notify=notify).run_until_idle()


def submit_at_once(threads: int, key: str) -> list[str]:
    """So many requests of one moment submit with one key, each in a transaction of its own: the ids they were given."""
    from django.db import connection, transaction

    import batchpipe
    from tests.django_models import Note

    together, found = threading.Barrier(threads), list[str]()

    def one() -> None:
        try:
            with transaction.atomic():
                job = batchpipe.submit(requests(2), key=key)
                together.wait(30)  # all have submitted before any commits
                Note.objects.create(text=job.id)
            found.append(job.id)
        finally:
            connection.close()

    workers = [threading.Thread(target=one) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def on_postgres() -> None:
    """Run with a database in the arguments: HOST USER REDIS_URL PREFIX HOME."""
    host, user, redis_url, prefix, home = sys.argv[1:]
    configure({"ENGINE": "django.db.backends.postgresql", "HOST": host, "USER": user, "NAME": "postgres"})
    with site(redis_url, prefix, Path(home)):
        import batchpipe

        ids = submit_at_once(6, "nightly")
        jobs = {batchpipe.get_job(one).id for one in ids}
        print(json.dumps({"ids": ids, "jobs": sorted(jobs), "listed": [job.id for job in batchpipe.list_jobs()]}))
