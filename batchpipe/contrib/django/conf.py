"""``BATCHPIPE = {...}`` of a site's settings: the names of our settings without their prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.conf import settings

if TYPE_CHECKING:
    from batchpipe.config.settings import Settings

NAME = "BATCHPIPE"


def spell(name: str) -> str:
    """How a setting is spelled in the site's settings."""
    return f'{NAME}["{name}"]'


def read_settings() -> Settings:
    """The settings of this site; those it does not set may come from the environment. Raises SettingsError."""
    from batchpipe.config.loading import load_settings
    from batchpipe.config.site_values import SiteSettings
    from batchpipe.errors import SettingsError

    if not isinstance(getattr(settings, NAME, None), Mapping | None):
        raise SettingsError(f"{NAME} is a {type(getattr(settings, NAME)).__name__}; it must be a dict of settings")
    return load_settings(given=SiteSettings(getattr(settings, NAME, None) or {}, spell))
