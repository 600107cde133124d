"""The command line: parse, call the client, print. Data goes to stdout, talk to stderr.

Commands are loaded when they are called, so that ``--help`` stays quick.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import click

from batchpipe import __version__
from batchpipe.errors import BatchpipeError, InvalidInput, JobNotFound

if TYPE_CHECKING:
    from batchpipe.cli.common import Invocation

#: command -> (module, one line of help); the order is the order of ``--help``.
COMMANDS = {
    "run": ("run", "Submit and follow to the end; the same command again resumes."),
    "submit": ("jobs", "Enqueue a job and print its id."),
    "status": ("status", "Show the state of a job."),
    "list": ("listing", "List jobs, newest first."),
    "wait": ("run", "Wait until jobs have ended."),
    "results": ("jobs", "Print the output rows of an ended job."),
    "cancel": ("jobs", "Cancel a job; finished rows are kept."),
    "land": ("jobs", "Collect what is there for a held job, or for one that ended without some batches."),
    "retry": ("jobs", "Send the rows that are not ok as a new job."),
    "resume": ("jobs", "End the pause of an account, or the hold of a job."),
    "validate": ("jobs", "Check an input without sending anything."),
    "logs": ("jobs", "Print the event log of a job."),
    "notifications": ("notifications", "List notifications that are not delivered, or send them again."),
    "files": ("files", "List our files at the provider, or delete those that are no longer needed."),
    "sweep": ("processes", "One pass of the safety net, for cron."),
    "schedules": ("schedules", "List the schedules, or run one now."),
    "recover": ("recover", "Rebuild records that Redis has lost; report orphans."),
    "worker": ("processes", "Run a Celery worker with the right settings."),
    "beat": ("processes", "Run Celery beat: the sweep every few seconds, and the schedules."),
    "flower": ("flower", "Run Flower: workers and tasks in a browser."),
    "webhooks": ("webhooks", "Receive the provider's webhooks."),
    "metrics": ("metrics", "Serve metrics for Prometheus."),
    "sandbox": ("processes", "Run the local OpenAI-compatible server."),
    "probe": ("probe", "Find out what an account's Batch server can do, and write its settings."),
    "doctor": ("doctor", "Check settings, Redis, account and workers."),
}


#: Commands that are soon over, most of which is loading modules.
SHORT = frozenset({"submit", "status", "list", "results", "cancel", "land", "retry", "resume", "logs", "notifications"})
#: New objects after which such a command looks for garbage. Modules make none, and Python looks after each 700 objects.
COLLECTED_AFTER = 20_000


class LazyGroup(click.Group):
    """Knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = import_module(f"batchpipe.cli.{COMMANDS[name][0]}")
        return cast(click.Command, getattr(module, f"{name}_command"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`batchpipe --help` lists the commands."
            raise click.UsageError(f"No such command {name[:40]!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="batchpipe")
@click.option("-A", "--app", metavar="MODULE", help="A site's own Celery app, as `celery -A` takes it.")
@click.pass_context
def cli(ctx: click.Context, app: str | None) -> None:
    """Run OpenAI Batch API jobs: split, upload, wait, resume, merge; every row accounted for, nothing paid twice.

    \b
    Try it without a key or cost:
        batchpipe run requests.jsonl -o results --sandbox
    Then for real:
        export OPENAI_API_KEY=sk-...
        batchpipe run requests.jsonl -o results

    \b
    Exit codes: 0 done as asked; 1 failed; 2 usage; 3 ended with some rows not ok;
    4 cancelled; 5 not ended within --timeout; 130 interrupted.
    """
    from batchpipe.cli.common import Invocation, has_site_app, use_app

    front = ctx.ensure_object(Invocation)
    if app is None and front.in_site and has_site_app():
        return
    if name := use_app(app):
        ctx.obj = replace(front, command=(*front.command, "-A", name))


def _check_text(args: list[str]) -> None:
    """Raises UsageError for arguments that are not UTF-8: neither Redis nor JSON could hold them."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"the argument {arg.encode(errors='replace').decode()!r} is not UTF-8") from None


def _words(error: BatchpipeError) -> str:
    """The message for an error; for an unknown job, also whether Redis may have lost it."""
    if not isinstance(error, JobNotFound) or error.job is None:
        return str(error)
    from batchpipe.cli.recover import where_it_is

    try:
        return f"{error}{where_it_is(error.job)}"
    except BatchpipeError:  # the list in the home folder cannot be read
        return str(error)


def _say_unwritten(error: OSError) -> None:
    """Output that could not be written must not be tried again when the process ends: that would print a traceback."""
    with suppress(OSError, ValueError):
        click.echo(f"Error: the output could not be written: {os.strerror(error.errno or 0)}", err=True)
    sys.stdout = sys.stderr = cast(Any, None)


def main(args: list[str] | None = None, *, prog: str = "batchpipe", front: Invocation | None = None) -> Any:
    """The entry point, also for a site's own command line (``front``). Expected errors are one line on stderr."""
    from batchpipe.cli.interrupts import take_interrupts

    take_interrupts()
    try:
        from batchpipe.cli.common import write_in_any_locale

        write_in_any_locale()
        words = sys.argv[1:] if args is None else args
        _check_text(words)
        if SHORT.intersection(words[:1]):
            gc.set_threshold(COLLECTED_AFTER)
        code = cli.main(args=args, prog_name=prog, standalone_mode=False, obj=front)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BatchpipeError as error:
        from batchpipe.cli.common import say_error

        # of wrong rows each has a line; of anything else a line break may be somebody's trick
        say_error(_words(error) if isinstance(error, InvalidInput) else " ".join(_words(error).split()))
        sys.exit(1)
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.exit(130)
    except BrokenPipeError:  # `batchpipe results ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # of stdout or stderr: errors of files have become ours by now
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EBADF):
            raise
        _say_unwritten(error)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
