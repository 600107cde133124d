"""``flask batchpipe ...``: the commands of ``batchpipe``, with the settings and the Celery app of the Flask app."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from flask.cli import ScriptInfo


class _HandedOn(click.Command):
    """Its arguments go unchanged to another parser: ``--help`` and ``--``, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return []


@click.command("batchpipe", cls=_HandedOn, short_help="Run and watch OpenAI Batch API jobs.")
@click.pass_context
def command(ctx: click.Context) -> Any:
    """The commands of ``batchpipe``; exit codes and messages are the same."""
    from batchpipe.cli import main
    from batchpipe.cli.common import Invocation

    main(ctx.args, prog=ctx.command_path, front=Invocation(command=_again(ctx), in_site=True))


def _again(ctx: click.Context) -> tuple[str, ...]:
    """How another process of this command is started: the worker of a ``run``."""
    info = ctx.find_object(ScriptInfo)
    if info is not None and info.create_app is not None and os.path.isfile(sys.argv[0]):
        return (sys.executable, sys.argv[0], ctx.info_name or "batchpipe")  # a script of the site
    path = info.app_import_path if info is not None else None
    return (sys.executable, "-m", "flask", *(("--app", path) if path else ()), ctx.info_name or "batchpipe")
