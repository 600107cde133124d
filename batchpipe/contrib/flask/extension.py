"""The extension: what a Flask app registers with batchpipe at its start. Importing it loads no library but Flask.

One process may hold several apps (tests make many). Code in the context of an app uses the settings, the Celery app
and the jobs of that app; code outside of any context, those of the app that was registered last.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Unpack

from flask import Flask, current_app, has_app_context

from batchpipe.config.site import FLASK, Site, current_site, install_site
from batchpipe.contrib.flask.command import command
from batchpipe.contrib.flask.config import read_settings
from batchpipe.contrib.flask.signals import send

if TYPE_CHECKING:
    from batchpipe.client.client import Client, Job
    from batchpipe.client.options import SubmitOptions
    from batchpipe.client.submission import Input
    from batchpipe.config.settings import Settings

#: In an app's extensions: this one, and the app's ``Site``.
NAME, SITE = "batchpipe", "batchpipe-site"


class BatchPipe:
    """``BatchPipe(app)``, or ``init_app(app)`` in an application factory.

    It reads ``app.config["BATCHPIPE_REDIS_URL"]`` and the other settings, adds ``flask batchpipe ...``, sets batchpipe
    up in ``app.extensions["celery"]``, whether that exists before or only later, and sends the signals.

    ``settings``: names of our settings without their prefix, for those that ``app.config`` does not set.
    """

    def __init__(self, app: Flask | None = None, *, settings: Mapping[str, Any] | None = None) -> None:
        self._defaults = dict(settings or {})
        self._last: Flask | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set batchpipe up in an app. Raises SettingsError: an app with wrong settings does not start."""
        if NAME in app.extensions:
            raise RuntimeError(
                "batchpipe is registered on this Flask app already: call BatchPipe(app) or init_app(app), and only once"
            )
        site = Site(lambda: read_settings(app, self._defaults))
        _ = site.settings
        self._last = app
        app.extensions.update({NAME: self, SITE: site})
        app.cli.add_command(command)
        _install(site, app)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, input: Input, **options: Unpack[SubmitOptions]) -> Job:
        """Enqueue a job of the current app and return at once. Same arguments as ``batchpipe.submit``."""
        with self._context():
            return self.client.submit(input, **options)

    def get_job(self, job_id: str) -> Job:
        """Raises JobNotFound, StoreUnavailable."""
        with self._context():
            return self.client.get_job(job_id)

    def list_jobs(self, *, state: str | None = None, limit: int = 100) -> list[Job]:
        """Newest first. Raises StoreUnavailable."""
        with self._context():
            return self.client.list_jobs(state=state, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; finished rows are kept. Raises JobNotFound, StoreUnavailable."""
        with self._context():
            return self.client.cancel(job_id)

    @property
    def client(self) -> Client:
        """The client of the current app's Redis; outside of any app's context, of the app registered last here."""
        from batchpipe.client.client import default_client

        with self._context():
            return default_client()

    @property
    def settings(self) -> Settings:
        site: Site = self._app().extensions[SITE]
        return site.settings

    def _context(self) -> AbstractContextManager[Any]:
        """The caller's context, with its ``g`` and its database session; one of our own if there is none."""
        app = self._app()
        return nullcontext() if has_app_context() else app.app_context()

    def _app(self) -> Flask:
        if has_app_context():
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
            if app.extensions.get(NAME) is self:
                return app
            raise RuntimeError(f"batchpipe is not registered on the Flask app {app.name!r}: call init_app(app)")
        if self._last is None:
            raise RuntimeError("batchpipe is registered on no Flask app: call init_app(app)")
        return self._last


# -- what batchpipe asks for ---------------------------------------------------------------------------------------


def _install(site: Site, app: Flask) -> None:
    """From now on settings are read, the Celery app is found and ends of jobs are signalled in Flask's way.

    The Celery app is where Flask's documentation puts it; looked up each time, because it may be set after us.
    """
    from celery import signals

    site.find_app = lambda: app.extensions.get("celery")
    site.receivers[FLASK] = lambda job_id: _notify(app, job_id)
    install_site(site, _site_here)
    signals.import_modules.connect(_join_worker, dispatch_uid="batchpipe-flask", weak=False)


def _site_here() -> Site | None:
    """The site of the app that the current context belongs to."""
    return current_app.extensions.get(SITE) if has_app_context() else None


def _join_worker(sender: Any, **_: Any) -> None:
    """A worker or beat starts, and its site is loaded: its Celery app may have been made after ``init_app``."""
    from batchpipe.worker.setup import is_set_up, setup, site_worker_of

    if sender is current_site().current_app() and not is_set_up(sender):
        setup(sender)
        site_worker_of(sender).configure()  # receivers connected during this signal are not called by it


def _notify(app: Flask, job_id: str) -> None:
    with app.app_context():
        send(app, app.extensions[NAME].get_job(job_id))
