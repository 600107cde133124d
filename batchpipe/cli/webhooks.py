"""The command that receives the provider's webhooks."""

from __future__ import annotations

import signal
import threading

import click

from batchpipe.cli.common import cannot_listen, counted, quiet_libraries, say, settings
from batchpipe.cli.options import WholeNumber
from batchpipe.cli.processes import loglevel_option


@click.command("webhooks")
@click.option("--port", type=WholeNumber(0, 65535), default=8090, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on, behind a proxy with TLS.")
@loglevel_option
def webhooks_command(port: int, host: str, loglevel: str) -> None:
    """Receive the provider's webhooks at /webhooks until told to stop: ends of batches are then noticed at once.

    Their secret is the setting WEBHOOK_SECRET of an account. See docs/webhooks.md.
    """
    from batchpipe.client.client import Client
    from batchpipe.telemetry.logs import configure_logging
    from batchpipe.webhooks.server import WebhookServer

    quiet_libraries()
    client = Client(settings())  # no check whether Redis answers: while it does not, senders are asked to come again
    secrets = client.webhooks().secrets
    if not secrets:
        raise click.ClickException(
            "no account has a webhook secret: set BATCHPIPE_ACCOUNTS__NAME__WEBHOOK_SECRET (or OPENAI_WEBHOOK_SECRET) "
            "to the one that the provider shows when a webhook is made; see docs/webhooks.md"
        )
    configure_logging(client.settings.log_format, loglevel)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = WebhookServer(lambda: client, host, port)
    except OSError as error:
        raise cannot_listen(host, port, error) from None
    server.start()
    names = ", ".join(f"{name} ({counted(len(found), 'secret')})" for name, found in sorted(secrets.items()))
    say(f"webhooks at http://{f'[{host}]' if ':' in host else host}:{server.port}/webhooks, of {names}")
    stop.wait()
    server.stop()
