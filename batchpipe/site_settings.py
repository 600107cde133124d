"""What a Django or Flask site says of our settings, in its own way of writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from batchpipe.errors import SettingsError


@dataclass(frozen=True)
class SiteSettings:
    """Our settings without their prefix, and how the site spells their names."""

    values: Mapping[str, Any]
    spell: Callable[[str], str]  #: the name of a setting -> what stands in the site's settings file

    def known(self, fields: Iterable[str]) -> dict[str, Any]:
        """The values under the names of our ``fields``; None counts as not set.

        Raises SettingsError for a name that is none of them.
        """
        names, found = list(fields), dict[str, Any]()
        for name, value in self.values.items():
            field = str(name).lower()
            if field not in names:
                hint = get_close_matches(field, names, n=1)
                also = f"; did you mean {hint[0].upper()}?" if hint else ""
                raise SettingsError(f"{self.spell(str(name))}: there is no such setting{also}")
            if value is not None:
                found[field.upper() if field.startswith("openai_") else field] = value
        if isinstance(accounts := found.get("accounts"), Mapping):  # variable names know no case, and may add to these
            found["accounts"] = {str(name).lower(): _lower(parts) for name, parts in accounts.items()}
        if isinstance(schedules := found.get("schedules"), Mapping):
            found["schedules"] = {str(name): _lower(parts) for name, parts in schedules.items()}
        return found


def _lower(parts: Any) -> Any:
    """The fields of one account or schedule, which sites may write in capitals like their other settings."""
    if not isinstance(parts, Mapping):
        return parts
    return {str(name).lower(): value for name, value in parts.items() if value is not None}
