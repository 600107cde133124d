"""``manage.py batchpipe ...``: the same commands as ``batchpipe ...``, with the site's settings and Celery app."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import redirect_stdout
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.module_loading import autodiscover_modules

#: Options that Django handles itself before it knows the command, and whether a value follows them.
_DJANGOS = {
    **dict.fromkeys(("--settings", "--pythonpath", "--verbosity", "-v"), True),
    **dict.fromkeys(("--traceback", "--skip-checks", "--no-color", "--force-color"), False),
}


class Command(BaseCommand):
    help = "Run OpenAI Batch API jobs: the commands of `batchpipe`, with this site's settings and Celery app."

    def run_from_argv(self, argv: list[str]) -> None:
        """The command line is ours: Django's parser does not parse it."""
        args, djangos = split_options(argv[2:])
        call(args, program=argv[0], djangos=djangos)

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """``manage.py help batchpipe``"""
        call(["--help"], program=prog_name, djangos={})

    def handle(self, *args: Any, **options: Any) -> None:
        """For ``call_command("batchpipe", "list", "--json", stdout=...)``. Raises CommandError with our exit code."""
        try:
            with redirect_stdout(getattr(self.stdout, "_out", sys.stdout)):
                call([str(arg) for arg in args], program=sys.argv[0], djangos={})
        except SystemExit as end:
            if end.code:
                code = end.code if isinstance(end.code, int) else 1
                raise CommandError(f"batchpipe {' '.join(args[:1])} ended with {code}", returncode=code) from None

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("args", nargs=argparse.REMAINDER)


def split_options(args: list[str]) -> tuple[list[str], dict[str, str]]:
    """Our arguments, and Django's options among them."""
    ours, djangos, rest = list[str](), dict[str, str](), iter(args)
    for arg in rest:
        name, sign, value = arg.partition("=") if arg.startswith("--") else (arg, "", "")
        if arg == "--":
            return [*ours, arg, *rest], djangos
        if re.fullmatch("-v[0-3]", arg):
            continue
        if name not in _DJANGOS:
            ours.append(arg)
        elif _DJANGOS[name]:
            djangos[name] = value if sign else next(rest, "")
        else:
            djangos[name] = ""
    return ours, djangos


def call(args: list[str], *, program: str, djangos: dict[str, str]) -> None:
    """Ends the process with the exit code of the command."""
    from batchpipe.cli import cli, main
    from batchpipe.cli.common import Invocation

    if args[:1] == ["worker"]:
        autodiscover_modules("tasks")  # receivers and callbacks, also where the site has no Celery app to find them
    front = Invocation(own_command(program, djangos), in_site=True)
    name = f"{os.path.basename(program)} batchpipe"
    if "--traceback" in djangos:
        sys.exit(cli.main(args=args, prog_name=name, standalone_mode=False, obj=front) or 0)
    main(args, prog=name, front=front)


def own_command(program: str, djangos: dict[str, str]) -> tuple[str, ...]:
    """How a process of ours, the worker of a ``run``, is started; the settings module is in its environment."""
    as_module = os.path.basename(program) == "__main__.py"
    start = ("-m", "django") if as_module else (os.path.abspath(program),)
    place = ("--pythonpath", djangos["--pythonpath"]) if "--pythonpath" in djangos else ()
    return (sys.executable, *start, "batchpipe", *place)
