"""``manage.py batchpipe ...``: the same commands as ``batchpipe ...``, with the site's settings and Celery app."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand
from django.utils.module_loading import autodiscover_modules

#: Options that Django takes for itself before it knows the command, and whether a value follows them.
_DJANGOS = {"--settings": True, "--pythonpath": True, "--traceback": False, "--skip-checks": False}


class Command(BaseCommand):
    help = "Run OpenAI Batch API jobs: the commands of `batchpipe`, with this site's settings and Celery app."

    def run_from_argv(self, argv: list[str]) -> None:
        """The command line is ours: Django's parser knows none of it."""
        args, djangos = split_options(argv[2:])
        call(args, program=argv[0], djangos=djangos)

    def handle(self, *args: Any, **options: Any) -> None:
        call([str(arg) for arg in args], program=sys.argv[0], djangos={})

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("args", nargs="*")  # for call_command("batchpipe", "list")


def split_options(args: list[str]) -> tuple[list[str], dict[str, str]]:
    """Our arguments, and the options of Django among them."""
    ours, djangos, rest = list[str](), dict[str, str](), iter(args)
    for arg in rest:
        name, sign, value = arg.partition("=")
        if arg == "--":
            return [*ours, arg, *rest], djangos
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
    from batchpipe.cli.house import Front

    if args[:1] == ["worker"]:
        autodiscover_modules("tasks")  # receivers and callbacks, also where the site has no Celery app to find them
    front = Front(own_command(program, djangos), in_site=True)
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
