"""The command that serves metrics for Prometheus."""

from __future__ import annotations

import signal
import threading

import click

from batchpipe.cli.common import cannot_listen, quiet_libraries, say, settings
from batchpipe.cli.options import WholeNumber


@click.command("metrics")
@click.option("--port", type=WholeNumber(0, 65535), default=9464, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; it has no password.")
def metrics_command(port: int, host: str) -> None:
    """Serve metrics for Prometheus at /metrics until told to stop. While Redis is away, batchpipe_up is 0."""
    from batchpipe.client.client import Client
    from batchpipe.monitoring.prometheus import serve

    quiet_libraries()
    client = Client(settings())  # no check whether Redis answers: a scrape will show it
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server, _ = serve(client, host, port)
    except OSError as error:
        raise cannot_listen(host, port, error) from None
    say(f"metrics at http://{host}:{server.server_port}/metrics")
    stop.wait()
    server.socket.close()
