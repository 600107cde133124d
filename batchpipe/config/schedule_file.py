"""The schedules of ``batchpipe.toml``, as a source of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource, TomlConfigSettingsSource

from batchpipe.config.environment import PREFIX
from batchpipe.errors import SettingsError


class ScheduleFile(PydanticBaseSettingsSource):
    """The tables ``[schedules.NAME]`` of batchpipe.toml. Paths in it are relative to its folder."""

    def __call__(self) -> dict[str, Any]:
        named = self.current_state.get("config")
        path = Path(named or "batchpipe.toml").expanduser()
        if named and not path.is_file():
            raise SettingsError(f"{PREFIX}CONFIG: there is no file {named}")
        try:
            data = TomlConfigSettingsSource(self.settings_cls, path).toml_data
        except (ValueError, OSError) as error:
            raise SettingsError(f"{path}: cannot be read: {error}") from None
        if others := sorted(data.keys() - {"schedules"}):
            raise SettingsError(f"{path}: {others[0]}: only [schedules.NAME] tables belong here; see docs/cron.md")
        return {"schedules": _below(path.absolute().parent, data["schedules"])} if data else {}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # called only for sources that go field by field


def _below(folder: Path, schedules: Any) -> Any:
    """Schedules with local paths that do not depend on where a worker was started."""
    if not isinstance(schedules, dict):
        return schedules
    base = str(folder).replace("{", "{{").replace("}", "}}")

    def rooted(field: str, value: Any) -> Any:
        if field in ("prompt", "system", "body") and isinstance(value, str) and value[:1] == "@" != value[1:2]:
            return f"@{folder / value[1:]}"
        if field == "answer" and isinstance(value, str):
            return str(folder / value)
        places = field in ("input", "output") and isinstance(value, str) and value
        return value if not places or "://" in value or value.startswith(("/", "~")) else f"{base}/{value}"

    return {
        name: {field: rooted(field, value) for field, value in parts.items()} if isinstance(parts, dict) else parts
        for name, parts in schedules.items()
    }
