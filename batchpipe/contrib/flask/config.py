"""``app.config["BATCHPIPE_..."]``: our settings, and the few names that are this extension's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from click import ClickException
from flask import Flask

from batchpipe.errors import SettingsError

if TYPE_CHECKING:
    from batchpipe.config.settings import Settings
    from batchpipe.config.site_values import SiteSettings

PREFIX = "BATCHPIPE_"
#: Who may see a job through the JSON views: a function (request, job) -> bool, or its dotted path.
VIEW_PERMISSION = "BATCHPIPE_VIEW_PERMISSION"
#: Settings of the extension, not of the pipeline.
OWN = frozenset({VIEW_PERMISSION})


class WrongConfig(SettingsError, ClickException):
    """A setting of a Flask app is missing or wrong. The ``flask`` command prints one line for it."""

    message = ""  # type: ignore[misc]  # click sets it; ours is a property

    def __init__(self, error: SettingsError) -> None:
        super().__init__(str(error), code=error.code)


def spell(name: str) -> str:
    """How a setting is spelled in the code of a Flask app."""
    return f'app.config["{PREFIX}{name}"]'


def read_settings(app: Flask, defaults: Mapping[str, Any]) -> Settings:
    """The settings of an app; those it does not set may come from the environment. Raises SettingsError.

    ``defaults``: for those that ``app.config`` does not set, names without their prefix.
    """
    from batchpipe.config.loading import load_settings

    try:
        settings = load_settings(given=_given(app, defaults))
        if settings.redis_url is None:
            raise SettingsError(
                f"{spell('REDIS_URL')} is not set, and batchpipe keeps its records in Redis: "
                f'write {spell("REDIS_URL")} = "redis://localhost:6379/0" before BatchPipe(app)'
            )
    except SettingsError as error:
        raise WrongConfig(error) from None
    return settings


def _given(app: Flask, defaults: Mapping[str, Any]) -> SiteSettings:
    from batchpipe.config.site_values import SiteSettings

    said = {
        name.removeprefix(PREFIX): value
        for name, value in app.config.items()
        if name.startswith(PREFIX) and name not in OWN and value is not None
    }

    def spelled(name: str) -> str:
        return f"BatchPipe(settings={{{name!r}: ...}})" if name in defaults and name not in said else spell(name)

    return SiteSettings({**defaults, **said}, spelled)
