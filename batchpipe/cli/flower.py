"""The command that shows workers and tasks in a browser."""

from __future__ import annotations

import logging
import sys

import click

from batchpipe.cli.common import open_client, say
from batchpipe.cli.options import WholeNumber
from batchpipe.cli.processes import loglevel_option


@click.command("flower", context_settings={"ignore_unknown_options": True})
@click.option("--address", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1]")
@click.option("--port", type=WholeNumber(0, 65535), help="Port to listen on; 0 takes a free one.  [5555]")
@click.option("--no-auth", is_flag=True, help="Ask for no password; on loopback only.")
@loglevel_option
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
def flower_command(
    address: str | None, port: int | None, no_auth: bool, loglevel: str, flower_options: tuple[str, ...]
) -> None:
    """Run Flower: workers and tasks in a browser. Further options, --name=value, go to Flower.

    It asks for the user and password of the settings FLOWER_USER and FLOWER_PASSWORD. Where no password is set, one is
    made and kept in the home folder. See docs/flower.md.
    """
    from batchpipe.monitoring.flower import ListenOptions, run_flower
    from batchpipe.telemetry.logs import configure_logging
    from batchpipe.worker.process import standalone_app
    from batchpipe.worker.setup import site_app

    client = open_client(patient=True)
    configure_logging(client.settings.log_format, loglevel)
    logging.getLogger("flower.inspector").setLevel(logging.ERROR)  # it warns four times where no worker answers yet
    app = site_app() or standalone_app(client.settings)
    listen = ListenOptions(address, port, auth=not no_auth)
    run_flower(app, client.settings, listen, flower_options, say, private=sys.stderr.isatty())
