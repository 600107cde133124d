"""The only reader of the environment, and the environments of child processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from batchpipe.errors import SettingsError

PREFIX = "BATCHPIPE_"

_SECRETS_FOLDER = Path("/run/secrets")


def secrets_folder() -> str | Path | None:
    """The folder of secret files, if there is one.

    Raises SettingsError if a named one does not exist: the keys in it would be missing, or others would apply.
    """
    named = os.environ.get(f"{PREFIX}SECRETS_DIR")
    if named and not Path(named).is_dir():
        wrong = f"{named} is no folder" if Path(named).exists() else f"there is no folder {named}"
        raise SettingsError(f"{PREFIX}SECRETS_DIR: {wrong}: name one with a file for each secret, or unset it")
    return named or (_SECRETS_FOLDER if _SECRETS_FOLDER.is_dir() else None)


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
    with quiet_about_broken_lines():
        in_file = dotenv_values(env_file or os.devnull, encoding="utf-8")
    names = {name.upper() for name in [*os.environ, *in_file]}
    return sorted(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


def broken_lines(env_file: str | Path | None) -> list[int]:
    """Numbers, from 1, of the lines of the file that set nothing, because they are not NAME=VALUE."""
    path = Path(env_file or os.devnull)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as stream:
        return [found.original.line + _blank(found.original.string) for found in parse_stream(stream) if found.error]


def _blank(text: str) -> int:
    """How many blank lines stand before a statement: dotenv counts them to it."""
    return text[: len(text) - len(text.lstrip())].count("\n")


@contextmanager
def quiet_about_broken_lines() -> Iterator[None]:
    """Without dotenv's own line about them, which names no file: ``broken_lines`` has them."""

    def is_other(record: logging.LogRecord) -> bool:
        return "could not parse" not in record.msg

    logger = logging.getLogger("dotenv.main")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


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
