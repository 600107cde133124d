"""`manage.py check` says what is wrong, in one line with the line to write; and a Django start waits for none of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import batchpipe
from batchpipe.config.site import current_site
from tests import django_project


@pytest.fixture(autouse=True)
def site(prefix: str, tmp_path: Path) -> Iterator[None]:
    """Nothing is connected to: this Redis is not there."""
    django_project.configure()
    with django_project.site("redis://127.0.0.1:1/0", prefix, tmp_path / "home"):
        yield


def found(**settings: Any) -> dict[str, Any]:
    """What `check` has to say of batchpipe under these settings, by its id."""
    from django.core.checks import run_checks
    from django.test import override_settings

    with override_settings(**settings):
        messages = run_checks(tags=["batchpipe"])
    assert len(messages) == len({message.id for message in messages})
    assert all(message.hint for message in messages)
    return {message.id.removeprefix("batchpipe."): message for message in messages}


def app(**conf: Any) -> Celery:
    """The site's Celery app; with no settings of its own it suits."""
    made = Celery("proj", set_as_current=False)
    good = {
        "broker_url": "redis://127.0.0.1:1/0",
        "worker_prefetch_multiplier": 1,
        "broker_transport_options": {"socket_timeout": 30, "visibility_timeout": 1_800},
    }
    made.conf.update({**good, **conf})
    return made


GOOD = {"REDIS_URL": "redis://127.0.0.1:1/0", "ACCOUNTS": {"default": {"API_KEY": "sk-not-real"}}}


def test_a_site_that_is_right_hears_nothing() -> None:
    batchpipe.setup(app())

    assert found(BATCHPIPE=GOOD) == {}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "BATCHPIPE is a list; it must be a dict"),
        ({**GOOD, "REDIS_ULR": "x"}, 'BATCHPIPE["REDIS_ULR"]: there is no such setting; did you mean REDIS_URL?'),
        ({**GOOD, "ATTEMPTS": "many"}, 'BATCHPIPE["ATTEMPTS"]: must be a whole number from 1 to 100'),
        (
            {**GOOD, "ACCOUNTS": {"default": {"APIKEY": "sk-secret"}}},
            "BATCHPIPE[\"ACCOUNTS\"]['default']['apikey']: there is no such setting; did you mean api_key?",
        ),
        ({"REDIS_URL": "localhost:6379/sk-secret"}, 'BATCHPIPE["REDIS_URL"]: is no Redis URL: write redis://HOST'),
        ({"REDIS_URL": "redis://:sk-secret@h:port/0"}, 'BATCHPIPE["REDIS_URL"]: is no Redis URL: write redis://HOST'),
        ({"REDIS_URL": "redis://:a@sk-secret/b@h:6379/0"}, 'BATCHPIPE["REDIS_URL"]: has a password that cuts it'),
        (
            {**GOOD, "BROKER_URL": "rediss://:a@sk-secret/#b@h:6379/0"},
            'BATCHPIPE["BROKER_URL"]: has a password that cuts it',
        ),
    ],
    ids=["no dict", "unknown name", "bad value", "account", "no URL", "no port", "cut URL", "cut broker's URL"],
)
def test_what_stands_in_the_settings_is_an_error_by_its_name(value: Any, says: str) -> None:
    """Nothing of a value is shown: it may be a secret."""
    [error] = [message for name, message in found(BATCHPIPE=value).items() if name[0] == "E"]

    assert error.id == "batchpipe.E001"
    assert says in error.msg
    assert "sk-secret" not in error.msg


def test_a_debug_page_shows_no_key() -> None:
    """Of Django's own: it has the settings, and the variables of each function in the traceback."""
    from django.test import Client, override_settings

    wrong = {"REDISURL": "x", "ACCOUNTS": {"default": {"API_KEY": "sk-secret"}}}
    with override_settings(BATCHPIPE=wrong, DEBUG=True, ALLOWED_HOSTS=["testserver"]):
        page = Client(raise_request_exception=False).get("/order/").content.decode()

    assert "REDISURL" in page
    assert "load_settings" in page
    assert "sk-secret" not in page


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "BATCHPIPE is"),
        ({}, 'BATCHPIPE["REDIS_URL"] is'),
        ({"REDIS_URL": ""}, 'BATCHPIPE["REDIS_URL"] is'),  # os.environ.get("REDIS_URL", "")
    ],
)
def test_a_site_without_redis_is_told_the_line_to_write(value: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the environment has it: twelve-factor sites need no BATCHPIPE at all."""
    message = found(BATCHPIPE=value)["E002"]

    assert message.msg.startswith(f"{name} not set")
    assert message.hint == 'Write BATCHPIPE = {"REDIS_URL": "redis://localhost:6379/0"}'
    monkeypatch.setenv("BATCHPIPE_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "E002" not in found(BATCHPIPE=value)


@pytest.mark.parametrize(
    ("rule", "says"), [("no_such_site.nobody.knows", "no_such_site"), ("os.sep", "no function"), (5, "no function")]
)
def test_a_rule_that_cannot_be_used_is_an_error(rule: Any, says: str) -> None:
    message = found(BATCHPIPE=GOOD, BATCHPIPE_VIEW_PERMISSION=rule)["E003"].msg

    assert message.startswith(f"BATCHPIPE_VIEW_PERMISSION = {rule!r} cannot be used: ")
    assert says in message


def test_a_rule_may_be_a_function() -> None:
    assert found(BATCHPIPE=GOOD, BATCHPIPE_VIEW_PERMISSION=lambda request, job: True) == {}


def test_an_app_that_was_not_set_up_is_a_warning() -> None:
    """A site without one needs none: `manage.py batchpipe worker` brings its own."""
    assert found(BATCHPIPE=GOOD) == {}
    current_site().app = app()
    assert "batchpipe.setup(app)" in found(BATCHPIPE=GOOD)["W001"].hint
    current_site().app = app(worker_prefetch_multiplier=4)
    assert list(found(BATCHPIPE=GOOD)) == ["W001", "W014"]  # all at once, not one after the other


@pytest.mark.parametrize("module", ["settings", "settings.prod"])
def test_the_module_of_celery_is_looked_for_beside_the_settings(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings may be a package; nobody has loaded the app yet, and so nobody has set it up."""
    name = f"house_{module.replace('.', '_')}"
    (tmp_path / name / "settings").mkdir(parents=True)
    (tmp_path / name / "celery.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    hint = found(BATCHPIPE=GOOD, SETTINGS_MODULE=f"{name}.{module}")["W001"].hint
    assert f"In {name}/celery.py, where the app is made: batchpipe.setup(app)" in hint


def test_what_only_a_worker_needs_is_a_warning() -> None:
    """A web process has no key; silenced there, it says nothing."""
    batchpipe.setup(app())

    messages = found(BATCHPIPE={"REDIS_URL": GOOD["REDIS_URL"]})
    assert list(messages) == ["W003"]
    assert messages["W003"].is_serious() is False


@pytest.mark.parametrize(
    ("conf", "name"),
    [
        ({"broker_url": None, "broker_transport_options": {}}, "W002"),
        ({"accept_content": ["pickle"]}, "W011"),
        ({"task_always_eager": True}, "W012"),
        ({"broker_transport_options": {"socket_timeout": 30, "visibility_timeout": 60}}, "W013"),
        ({"worker_prefetch_multiplier": 4}, "W014"),
        ({"worker_enable_remote_control": False}, "W015"),
    ],
)
def test_settings_of_the_celery_app_are_warnings_with_numbers_of_their_own(conf: dict[str, Any], name: str) -> None:
    """So that each can be silenced for itself."""
    batchpipe.setup(app(**conf))

    [message] = found(BATCHPIPE=GOOD).values()
    assert message.id == f"batchpipe.{name}"
    assert message.hint.startswith("Write app.conf.")


def test_with_deploy_redis_and_the_sweep_are_looked_at(redis_url: str, prefix: str) -> None:
    from django.core.checks import run_checks
    from django.test import override_settings

    from batchpipe.client.client import default_client

    def deployed(url: str) -> list[str]:
        with override_settings(BATCHPIPE={**GOOD, "REDIS_URL": url, "PREFIX": prefix}):
            return [message.id for message in run_checks(tags=["batchpipe"], include_deployment_checks=True)]

    batchpipe.setup(app())
    assert deployed("redis://127.0.0.1:1/0") == ["batchpipe.W004"]
    assert deployed(redis_url) == ["batchpipe.W005"]
    with override_settings(BATCHPIPE={**GOOD, "REDIS_URL": redis_url, "PREFIX": prefix}):
        default_client().store.due.note_sweep()
    assert deployed(redis_url) == []


START = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "batchpipe.contrib.django"],
    BATCHPIPE={"REDIS_URL": "redis://127.0.0.1:1/0"},
    ROOT_URLCONF="batchpipe.contrib.django.urls",
)
import django
django.setup()
from django.urls import reverse
reverse("list")
heavy = ("openai", "celery", "kombu", "redis", "fsspec", "pydantic", "msgspec", "starlette", "click")
print([name for name in heavy if name in sys.modules])
"""


def test_a_django_start_loads_none_of_our_libraries(tmp_path: Path) -> None:
    """Settings, commits, ends and pages are hung in by name only; what they need comes with their first use."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )

    assert (done.stdout.strip(), done.stderr) == ("[]", "")
