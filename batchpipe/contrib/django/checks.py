"""``manage.py check``: what is wrong with batchpipe on this site, with the line to write.

Without ``--deploy`` it makes no connection, and loads no library that the site has not loaded itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.conf import settings as site
from django.core.checks import CheckMessage, Error, Warning

from batchpipe.contrib.django import conf
from batchpipe.errors import BatchpipeError, SettingsError

if TYPE_CHECKING:
    from celery import Celery

    from batchpipe.config.settings import Settings

#: Numbers of warnings about settings of the Celery app, by the end of their names; 19 is for all others.
APP_NUMBERS = {
    "accept_content": 11,
    "task_always_eager": 12,
    "broker_transport_options": 13,
    "worker_prefetch_multiplier": 14,
    "worker_enable_remote_control": 15,
}
#: If the last sweep is older than this, nothing is being repaired.
SWEEP_SILENCE_SECONDS = 600.0


def check_site(**_: Any) -> list[CheckMessage]:
    """Errors concern what each process needs; warnings what only a worker needs."""
    return list(_look())


def _look() -> Iterator[CheckMessage]:
    try:
        settings = conf.read_settings()
    except SettingsError as error:
        hint = f"Correct {conf.NAME} in your settings; docs/settings.md lists all names, here without BATCHPIPE_."
        yield Error(str(error), hint=hint, id="batchpipe.E001")
        return
    if settings.redis_url is None:
        what = conf.spell("REDIS_URL") if getattr(site, conf.NAME, None) is not None else conf.NAME
        hint = f'Write {conf.NAME} = {{"REDIS_URL": "redis://localhost:6379/0"}}'
        yield Error(f"{what} is not set: batchpipe keeps its records in Redis.", hint=hint, id="batchpipe.E002")
    yield from _permission()
    yield from _celery(settings)
    yield from _keys(settings)


def _permission() -> Iterator[CheckMessage]:
    from batchpipe.contrib.django.access import NAME, may_see

    try:
        may_see()
    except ImportError as error:
        hint = "Give the dotted path of a function (request, job) -> bool."
        yield Error(f"{NAME} = {getattr(site, NAME)!r} cannot be used: {error}", hint=hint, id="batchpipe.E003")


def _celery(settings: Settings) -> Iterator[CheckMessage]:
    app = _app()
    project = _project()
    if app is None and not _is_there(f"{project}.celery"):
        return  # a site without Celery: `manage.py batchpipe worker` brings an app
    if app is None or not _is_set_up(app):
        hint = (
            f"In {project}/celery.py, where the app is made: batchpipe.setup(app)"
            f"; and in {project}/__init__.py: from {project}.celery import app as celery_app"
        )
        yield Warning("The Celery app of this site is not set up for batchpipe.", hint=hint, id="batchpipe.W001")
    if app is None:  # it is not loaded, so nothing is known of it
        return
    if not (app.conf.broker_write_url or app.conf.broker_url):
        name = f"{app.namespace}_BROKER_URL" if app.namespace else "app.conf.broker_url"
        hint = f"Write {name} = {conf.spell('REDIS_URL')}, or the URL of your RabbitMQ."
        yield Warning(f"{name} is not set: nobody gets the tasks.", hint=hint, id="batchpipe.W002")
    yield from _findings(app, settings)


def _project() -> str:
    """The package of the settings that has a module for Celery: of ``proj.settings.prod`` it is ``proj``."""
    parents = str(getattr(site, "SETTINGS_MODULE", "") or "proj.settings").split(".")[:-1]
    names = [".".join(parents[:end]) for end in range(len(parents), 0, -1)]
    return next((name for name in names if _is_there(f"{name}.celery")), parents[0] if parents else "proj")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its package is not one, or does not exist
        return False


def _app() -> Celery | None:
    """The site's Celery app, if the site has made one; else Celery need not be loaded now."""
    if "celery" not in sys.modules:
        return None
    from batchpipe.worker.setup import site_app

    return site_app()


def _is_set_up(app: Celery) -> bool:
    from batchpipe.worker.setup import is_set_up

    return is_set_up(app)


def _findings(app: Celery, settings: Settings) -> Iterator[CheckMessage]:
    from batchpipe.worker.checks import check_app

    for finding in check_app(app, settings):
        ends = [number for end, number in APP_NUMBERS.items() if finding.name.lower().endswith(end)]
        number = ends[0] if ends else 19
        yield Warning(f"{finding.name}: {finding.why}.", hint=f"Write {finding.line}", id=f"batchpipe.W0{number}")


def _keys(settings: Settings) -> Iterator[CheckMessage]:
    for name in sorted(settings.accounts) or ["default"]:
        try:
            settings.account(name)
        except SettingsError as error:
            hint = (
                "Only workers need it (`manage.py batchpipe worker --sandbox` does not): silence this where none runs."
            )
            yield Warning(str(error), hint=hint, id="batchpipe.W003")


def check_deployment(**_: Any) -> list[CheckMessage]:
    """With ``--deploy``: does Redis answer, and do sweeps run?"""
    from batchpipe.client.client import default_client

    try:
        if conf.read_settings().redis_url is None:
            return []  # said already
    except SettingsError:
        return []  # said already
    try:
        swept = default_client().stats().swept
    except BatchpipeError as error:
        hint = f"Check {conf.spell('REDIS_URL')}, and the network."
        return [Warning(f"Redis does not answer: {error}", hint=hint, id="batchpipe.W004")]
    if swept is not None and time.time() - swept < SWEEP_SILENCE_SECONDS:
        return []
    hint = "Start a worker and beat: celery -A PROJECT worker; celery -A PROJECT beat"
    return [Warning("No worker has swept lately: nothing repairs what is lost.", hint=hint, id="batchpipe.W005")]
