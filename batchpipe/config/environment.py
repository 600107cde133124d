"""The only reader of the environment, and the environments of child processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from batchpipe.errors import SettingsError

PREFIX = "BATCHPIPE_"

_SECRETS_FOLDER = Path("/run/secrets")


def secrets_folder() -> str | Path | None:
    """The folder of secret files, if there is one."""
    return os.environ.get(f"{PREFIX}SECRETS_DIR") or (_SECRETS_FOLDER if _SECRETS_FOLDER.is_dir() else None)


def file_of_variables() -> str | None:
    """The file of variables to read, if any.

    Raises SettingsError if a named file does not exist: else other settings than intended would apply.
    """
    named = os.environ.get(f"{PREFIX}ENV_FILE")
    if named and not Path(named).expanduser().is_file():
        raise SettingsError(f"{PREFIX}ENV_FILE: there is no file {named}")
    return ".env" if named is None else str(Path(named).expanduser()) if named else None


def names_of_variables(env_file: str | Path | None) -> list[str]:
    """Names of the variables, here or in the file, that begin with our prefix; in capitals and without it."""
    names = {name.upper() for name in [*os.environ, *dotenv_values(env_file or os.devnull, encoding="utf-8")]}
    return sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


#: Variables that the HTTP client reads by itself; also in lower case.
_TRANSPORT = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


def transport_environment() -> dict[str, str]:
    """The variables that the HTTP client reads by itself, spelled as they are set. Values may hold passwords."""
    names = [spelled for name in _TRANSPORT for spelled in (name, name.lower())]
    return {name: value for name in names if (value := os.environ.get(name))}


def bare_environment() -> dict[str, str]:
    """The variables that a helper process needs, and none that may be a secret."""
    wanted = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in wanted if name in os.environ}


def is_path_safe() -> bool:
    """Whether modules must not be imported from the current folder. Our own ``-P``, for the worker of a ``run``, does
    not count.
    """
    return bool(os.environ.get("PYTHONSAFEPATH"))


def set_sandbox() -> None:
    """Set SANDBOX for this process, and for those that it starts."""
    os.environ[f"{PREFIX}SANDBOX"] = "true"


def sandbox_upstream_key() -> str | None:
    """The key of ``sandbox --upstream``: from the environment, because others can read command lines."""
    return os.environ.get(f"{PREFIX}SANDBOX_UPSTREAM_KEY")


def sandbox_webhook_secret() -> str | None:
    """The secret of ``sandbox --webhook-url``."""
    return os.environ.get(f"{PREFIX}SANDBOX_WEBHOOK_SECRET")


def with_settings(values: Mapping[str, str]) -> dict[str, str]:
    """All variables of this process, and these settings."""
    return {**os.environ, **{f"{PREFIX}{name}": value for name, value in values.items()}}
