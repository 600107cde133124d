"""A Django site as many are: a user of its own, two databases, ATOMIC_REQUESTS on both."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from tests.acceptance.user_machine import Machine, Process, until
from tests.redis_server import free_port

MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """
import os
from pathlib import Path

SECRET_KEY, DEBUG, ALLOWED_HOSTS = "not-a-secret", False, ["*"]
ROOT_URLCONF, USE_TZ, STATIC_URL = "proj.urls", True, "static/"
AUTH_USER_MODEL, DEFAULT_AUTO_FIELD = "shop.Person", "django.db.models.BigAutoField"
INSTALLED_APPS = [
    *(f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")),
    "batchpipe.contrib.django",
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]


def _database(name):
    here = Path(__file__).parents[1] / name
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": here,
        "ATOMIC_REQUESTS": True,
        "OPTIONS": {"timeout": 30},
        "TEST": {"NAME": f"{here}-test"},
    }


DATABASES = {"default": _database("db"), "archive": _database("archive")}
BATCHPIPE = {"REDIS_URL": os.environ["SITE_REDIS"]}
BATCHPIPE_VIEW_PERMISSION = "batchpipe.contrib.django.access.owner_or_staff"
CELERY_BROKER_URL = BATCHPIPE["REDIS_URL"]
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 1800, "socket_timeout": 30, "socket_connect_timeout": 5}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
"""
#: Loaded by the server's master where it loads the site before it forks: Redis has been talked to by then.
WSGI = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
import batchpipe
print("jobs at the start:", len(list(batchpipe.list_jobs())))
"""
ASGI = WSGI.replace("wsgi", "asgi")
CELERY = """
import os
import batchpipe
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
batchpipe.setup(app)
"""
MODELS = """
import uuid
from django.contrib.auth.models import AbstractUser
from django.db import models


class Person(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)


class Order(models.Model):
    person = models.ForeignKey(Person, on_delete=models.CASCADE)
    job = models.CharField(max_length=40)
    text = models.TextField(default="")


class Note(models.Model):
    job = models.CharField(max_length=40)
"""
TASKS = """
from batchpipe.contrib.django.signals import job_succeeded
from django.dispatch import receiver


@receiver(job_succeeded)
def write_back(sender, job, **kwargs):
    from shop.models import Order
    text = " ".join(row.response["body"]["choices"][0]["message"]["content"] for row in job.results())
    Order.objects.filter(job=job.id).update(text=text)
"""
VIEWS = """
import batchpipe
from asgiref.sync import sync_to_async
from django.contrib.auth import login
from django.db import transaction
from django.http import JsonResponse

from shop.models import Note, Order, Person


def rows():
    for name in Person.objects.values_list("username", flat=True):
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Hello {name}"}]}
        yield {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def make_order(request):
    person, _ = Person.objects.get_or_create(username="ann")
    login(request, person)
    job = batchpipe.submit(rows(), tags={"user": request.user.pk})
    Order.objects.create(job=job.id, person=person)
    Note.objects.using("archive").create(job=job.id)
    if "fail" in request.GET:
        raise ValueError(request.GET["fail"])
    return JsonResponse({"job": job.id})


def order(request):
    return make_order(request)


@transaction.non_atomic_requests
@transaction.non_atomic_requests(using="archive")
async def order_async(request):
    def within():
        with transaction.atomic():
            return make_order(request)
    return await sync_to_async(within)()


def text(request, job):
    return JsonResponse({"text": Order.objects.get(job=job).text, "user": str(request.user)})


def jobs(request):
    return JsonResponse({"jobs": [job.id for job in batchpipe.list_jobs()], "orders": Order.objects.count()})
"""
URLS = """
from django.contrib import admin
from django.urls import include, path
from shop import views

urlpatterns = [
    path("order/", views.order),
    path("order-async/", views.order_async),
    path("text/<job>/", views.text),
    path("jobs/", views.jobs),
    path("batchpipe/", include("batchpipe.contrib.django.urls")),
    path("admin/", admin.site.urls),
]
"""
TESTS = """
import batchpipe
from django.test import Client, TestCase, TransactionTestCase

from shop.models import Order


def known():
    return {job.id for job in batchpipe.list_jobs()}


class Inside(TestCase):
    databases = {"default", "archive"}

    def test_a_request_is_sent_when_the_commits_are_played(self):
        with self.captureOnCommitCallbacks(execute=True), self.captureOnCommitCallbacks(using="archive", execute=True):
            job = self.client.get("/order/").json()["job"]
            assert job not in known()
        assert job in known()

    def test_a_request_that_fails_is_not(self):
        before = known()
        with self.captureOnCommitCallbacks(execute=True), self.captureOnCommitCallbacks(using="archive", execute=True):
            assert Client(raise_request_exception=False).get("/order/?fail=1").status_code == 500
        assert known() == before


class Outside(TransactionTestCase):
    databases = {"default", "archive"}

    def test_a_request_is_sent_when_it_has_ended(self):
        job = self.client.get("/order/").json()["job"]
        assert job in known()
        assert Order.objects.get().job == job

    def test_a_request_that_fails_is_not(self):
        before = known()
        assert Client(raise_request_exception=False).get("/order/?fail=1").status_code == 500
        assert known() == before
        assert not Order.objects.exists()
"""
FILES = {
    "manage.py": MANAGE,
    "proj/__init__.py": "",
    "proj/settings.py": SETTINGS,
    "proj/urls.py": URLS,
    "proj/wsgi.py": WSGI,
    "proj/asgi.py": ASGI,
    "shop/__init__.py": "",
    "shop/models.py": MODELS,
    "shop/tasks.py": TASKS,
    "shop/views.py": VIEWS,
    "shop/tests.py": TESTS,
    "shop/migrations/__init__.py": "",
}


class Site:
    """The site on a machine, run by a Python that has some Django."""

    def __init__(self, machine: Machine, python: Path, more: str = "") -> None:
        """With ``more`` at the end of its settings."""
        self.machine = machine
        machine.interpreter = python
        assert machine.redis_url is not None
        machine.environment |= {"SITE_REDIS": machine.redis_url, "PYTHONWARNINGS": "ignore"}
        del machine.environment["BATCHPIPE_REDIS_URL"]
        for name, text in FILES.items():
            path = machine.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + more if path.name == "settings.py" else text)
        for command in (("makemigrations", "shop"), ("migrate",), ("migrate", "--database", "archive")):
            done = self.start("manage.py", *command).finish()
            assert done.code == 0, done.err

    def start(self, *arguments: str) -> Process:
        return self.machine.start_python(*arguments)

    def worker(self, *command: str) -> Process:
        process = self.start(*(command or ("manage.py", "batchpipe", "worker", "--concurrency", "2")))
        self.machine.await_ready(process)
        return process

    def with_celery_app(self) -> None:
        """What a site does that has one."""
        (self.machine.folder / "proj/celery.py").write_text(CELERY)
        (self.machine.folder / "proj/__init__.py").write_text("from proj.celery import app as celery_app\n")

    def serve(self, *command: str) -> Visitor:
        """Start a server; ``PORT`` in its arguments is a free one. Returns once it answers."""
        port = str(free_port())
        process = self.start(*(part.replace("PORT", port) for part in command))
        visitor = Visitor(f"http://127.0.0.1:{port}", process)
        until(visitor.is_answered, what=" ".join(command))
        return visitor


class Visitor:
    """Keeps cookies, reads JSON."""

    def __init__(self, url: str, server: Process) -> None:
        self.url, self.server = url, server
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def is_answered(self) -> bool:
        assert self.server.running, self.server.err + self.server.out
        try:
            return self.status("/jobs/") == 200
        except OSError:
            return False

    def get(self, path: str) -> Any:
        with self._opener.open(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def status(self, path: str) -> int:
        try:
            with self._opener.open(self.url + path, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def stranger(self) -> Visitor:
        return Visitor(self.url, self.server)


def count_of_tests(text: str) -> int:
    """How many tests Django says that it ran."""
    found = re.search(r"Ran (\d+) tests", text)
    return int(found[1]) if found else 0
