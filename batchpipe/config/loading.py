"""Reads the settings: environment, file of variables, secret files, a site's values. Hands them to child processes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batchpipe.config.account import Account
from batchpipe.config.environment import (
    PREFIX,
    broken_lines,
    file_of_variables,
    names_of_variables,
    quiet_about_broken_lines,
    secrets_folder,
    with_settings,
)
from batchpipe.config.plain_words import wrong_value
from batchpipe.config.settings import Settings
from batchpipe.config.site_values import SiteSettings
from batchpipe.errors import SettingsError
from batchpipe.model.schedule import Schedule


def load_settings(*, env_file: str | Path | None = "", given: SiteSettings | None = None) -> Settings:
    """Read the environment, a file of variables and secret files; values that a site has ``given`` override them.

    ``env_file``: "" means the file that ENV_FILE names, ``.env`` if that is not set, and none if it is set to "".

    Raises SettingsError: one line that names the variable, spelled as where it was set.
    """
    site, env_file = given or SiteSettings({}, str), file_of_variables() if env_file == "" else env_file
    where: dict[str, Any] = {
        "_env_file": env_file,
        "_env_file_encoding": "utf-8",
        "_secrets_dir": secrets_folder(),
    }
    try:
        with quiet_about_broken_lines():
            settings = Settings(**where, **site.known(Settings.model_fields))
    except ValidationError as error:
        parts = error.errors(include_input=False)
        names = site.known(Settings.model_fields).keys()
        raise SettingsError("; ".join(_explain(part, site, names) for part in parts)) from None
    except (ValueError, OSError) as error:  # a .env that is not UTF-8, or invalid JSON
        raise SettingsError(_unreadable(error)) from None
    settings._spell = given.spell if given is not None else None
    settings._unknown = (*_ignored_lines(env_file), *_unknown_names(env_file))
    return settings


def _unreadable(error: Exception) -> str:
    """pydantic_settings names the field of a value that is to be JSON, and not the variable, which may be below it."""
    if not (field := re.search(r'value for field "(\w+)"', str(error))):
        return f"the settings cannot be read: {error}"
    name = f"{PREFIX}{field[1].upper()}"
    return f"{name} (or one that begins with {name}__): is not JSON, which is read here"


#: Variables that are read elsewhere, or that others set: Kubernetes for a service of this name.
_ELSEWHERE = frozenset({"ENV_FILE", "SECRETS_DIR", "SANDBOX_UPSTREAM_KEY", "SANDBOX_WEBHOOK_SECRET"})
_OF_KUBERNETES = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")
#: At most so many are named: the rest is shown when these are corrected.
_MOST_UNKNOWN = 10


def _ignored_lines(env_file: str | Path | None) -> tuple[str, ...]:
    """A line for each of the file that cannot be read: what it sets is not set. It may be a key: it is not shown."""
    numbers = broken_lines(env_file)[:_MOST_UNKNOWN]
    return tuple(
        f"{env_file}, line {number}: is ignored, because it is not NAME=VALUE: correct it (quotes are closed on both "
        "sides), or begin it with #"
        for number in numbers
    )


def _unknown_names(env_file: str | Path | None) -> tuple[str, ...]:
    """A line for each variable, of the environment or of ``.env``, that looks like a setting and is not one."""
    fields = [name.upper() for name in Settings.model_fields if not name.startswith("openai_")]
    lines = []
    for name in names_of_variables(env_file):
        if name.partition("__")[0] in fields or name in _ELSEWHERE or _OF_KUBERNETES.fullmatch(name[:200]):
            continue
        near = get_close_matches(name.partition("__")[0][:100], fields, n=1)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        lines.append(f"{PREFIX}{name[:100]}: there is no such setting{hint}")
    return tuple(lines[:_MOST_UNKNOWN])


def _explain(part: Mapping[str, Any], given: SiteSettings, names: Collection[str]) -> str:
    """One validation error without the value, which may be a secret."""
    steps, message = [str(step) for step in part["loc"]], wrong_value(part, Settings)
    if part["type"] == "extra_forbidden":
        near = get_close_matches(
            steps[-1], Account.model_fields if steps[0] == "accounts" else Schedule.model_fields, 1
        )
        message = f"there is no such setting{f'; did you mean {near[0]}?' if near else ''}"
    if steps and steps[0] in names:
        return f"{given.spell(steps[0].upper())}{''.join(f'[{step!r}]' for step in steps[1:])}: {message}"
    if steps[:1] == ["schedules"]:
        return f"{'.'.join(steps)}: {message}"
    name = "__".join(steps).upper()
    return f"{name if name.startswith('OPENAI_') else PREFIX + name}: {message}"


def child_environment(settings: Settings, **extra: str) -> dict[str, str]:
    """The environment of a child process (a worker): ours, with the Redis and other values that we found.

    An environment is private to the user; secrets must not be in process arguments, which everybody can read.
    """
    return with_settings({"REDIS_URL": settings.redis_address(), "HOME": str(settings.home), **extra})
