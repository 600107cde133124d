"""A Django or Flask site's values for our settings, spelled in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from batchpipe.errors import SettingsError


@dataclass(frozen=True)
class SiteSettings:
    """Our settings without their prefix, and how the site spells their names.

    Error pages and reports show the variables of each function in a traceback: where our code raises, none may hold a
    value, because that may be a secret.
    """

    values: Mapping[str, Any] = field(repr=False)
    spell: Callable[[str], str]  #: the name of a setting -> how the site's settings file spells it

    def known(self, fields: Iterable[str]) -> dict[str, Any]:
        """The values under the names of our ``fields``; None and "" count as not set, as an empty variable does.

        Raises SettingsError for an unknown name.
        """
        self._check_names(list(fields))
        found = {_stored(str(name)): value for name, value in self.values.items() if value is not None and value != ""}
        if isinstance(accounts := found.get("accounts"), Mapping):  # variables, in any case, may add to these
            found["accounts"] = {str(name).lower(): _lower(parts) for name, parts in accounts.items()}
        if isinstance(schedules := found.get("schedules"), Mapping):
            found["schedules"] = {str(name): _lower(parts) for name, parts in schedules.items()}
        return found

    def _check_names(self, fields: list[str]) -> None:
        for name in map(str, self.values):
            if name.lower() not in fields:
                near = get_close_matches(name.lower(), fields, n=1)
                also = f"; did you mean {near[0].upper()}?" if near else ""
                raise SettingsError(f"{self.spell(name)}: there is no such setting{also}")


def _stored(name: str) -> str:
    return name.upper() if name.lower().startswith("openai_") else name.lower()


def _lower(parts: Any) -> Any:
    """The fields of one account or schedule, which sites may write in capitals like their other settings."""
    if not isinstance(parts, Mapping):
        return parts
    return {str(name).lower(): value for name, value in parts.items() if value is not None and value != ""}
