"""probe: find out what an account's Batch server can do, and write the account's settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from batchpipe.cli.common import emit_json, out, quiet_libraries, say, settings
from batchpipe.cli.options import Seconds, endpoint_option, json_option
from batchpipe.errors import InvalidInput
from batchpipe.model.records import DEFAULT_ENDPOINT

#: Rows that a probe sends at most.
ROWS = 12


@click.command("probe")
@click.argument("account", default="default")
@click.option("--model", default="gpt-4o-mini", show_default=True, help="Model that the rows name.")
@endpoint_option
@click.option("--completion-window", "window", default="24h", show_default=True, help="Window of the first batch.")
@click.option("--timeout", type=Seconds(), default=600.0, show_default=True, help="How long that batch may take.")
@click.option(
    "--write", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Add the settings to it."
)
@click.option("--yes", is_flag=True, help="Do not ask before rows are sent.")
@json_option
def probe_command(
    account: str,
    model: str,
    endpoint: str | None,
    window: str,
    timeout: float,
    write: Path | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Find out what an account's Batch server can do. [default account: default]

    Sends about a dozen tiny rows, in a few batches, and prints what was found and the settings of the account that
    follow; --write adds them to a file such as .env. Nothing is left behind.
    """
    from batchpipe.client.probe import probe_account

    quiet_libraries()
    chosen = settings()
    name = account.lower()
    chosen.account(name)  # what is wrong with it is said before anything is asked
    if write is not None:
        _check(write)  # and this before anything is sent, and paid
    if not (yes or chosen.is_sandbox(name)):
        _ask(name, model)
    found = probe_account(
        chosen, name, model=model, endpoint=endpoint or DEFAULT_ENDPOINT, window=window, timeout=timeout, say=say
    )
    lines = [f"BATCHPIPE_ACCOUNTS__{name.upper()}__{key}={value}" for key, value in found.settings.items()]
    if as_json:
        emit_json({**asdict(found), "settings": dict(line.split("=", 1) for line in lines)})
    else:
        width = max(len(one.what) for one in found.found)
        for one in found.found:
            out(f"{one.what:<{width}}  {one.value or 'unknown':<8}  {one.detail}".rstrip())
        for line in lines:
            out(line)
    if write is not None:
        _write(write, lines)
        say(f"{len(lines)} settings written to {write}")
    return 0


def _ask(account: str, model: str) -> None:
    """Raises InvalidInput where nobody can be asked; ends the command if the answer is no."""
    words = f"probe sends {ROWS} tiny rows to account {account}, model {model}; they may cost a fraction of a cent"
    if not sys.stdin.isatty():
        raise InvalidInput(f"{words}: confirm with --yes", code="not_confirmed")
    click.confirm(f"{words}. Go on?", abort=True, err=True)


def _check(path: Path) -> None:
    """Raises InvalidInput if the file could not be read or written."""
    from batchpipe.storage.local import check_variables

    with _refused(path):
        check_variables(path)


def _write(path: Path, lines: list[str]) -> None:
    """Raises InvalidInput if the file cannot be read or written."""
    from batchpipe.storage.local import set_variables

    with _refused(path):
        set_variables(path, lines)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: cannot be changed: it is no text in UTF-8", field="--write") from None
    except OSError as error:  # its own text names a temporary file
        raise InvalidInput(f"{path}: cannot be changed: {error.strerror or error}", field="--write") from None
