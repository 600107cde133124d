"""Commands that are processes: worker, beat, sandbox; and sweep, which cron calls."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchpipe.cli.common import cannot_listen, open_client, say
from batchpipe.cli.options import Number, WholeNumber

if TYPE_CHECKING:
    from batchpipe.config.settings import Settings
    from batchpipe.sandbox.options import OptionArgs

loglevel_option = click.option(
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="What goes to the log.",
)

alive_option = click.option(
    "--alive-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Touched every few seconds while the broker is there; for health checks.",
)


@click.command("sweep")
def sweep_command() -> None:
    """One pass of the safety net: publish overdue work again, cancel orphan batches. For cron, without beat."""
    say(f"{open_client().sweep(listing=True)} overdue")


#: Why this pool cannot be used here.
_GREEN = {
    "gevent": "must be set up before anything is imported: start `celery -A batchpipe.worker worker -P gevent`",
    "eventlet": "the provider cannot be called there; take threads, or `celery -A batchpipe.worker worker -P gevent`",
}


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.option("--queues", metavar="NAMES", help="Comma-separated queues.  [default: the QUEUE setting]")
@click.option("--pool", default="threads", show_default=True, help="Celery pool: threads, prefork or solo.")
@click.option("--concurrency", type=WholeNumber(min=1), default=8, show_default=True, help="Tasks at once.")
@loglevel_option
@alive_option
@click.option("--sandbox", is_flag=True, help="Try it without a key: the account `default` is a local server.")
@click.option("--with-parent", is_flag=True, hidden=True, help="Stop when standard input ends.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker_command(
    queues: str | None,
    pool: str,
    concurrency: int,
    loglevel: str,
    alive_file: Path | None,
    sandbox: bool,
    with_parent: bool,
    celery_options: tuple[str, ...],
) -> None:
    """Run a Celery worker with the right settings. Further options go to Celery."""
    from batchpipe.config.site import use_sandbox
    from batchpipe.telemetry.logs import configure_logging
    from batchpipe.worker.process import run_worker

    if pool in ("gevent", "eventlet"):
        raise click.BadParameter(f"{pool}: {_GREEN[pool]}", param_hint="--pool")
    if pool != "prefork" and any(option.partition("=")[0] == "--autoscale" for option in celery_options):
        why = (
            f"a pool of {pool} does not grow or shrink: set --concurrency (idle threads cost little) or --pool prefork"
        )
        raise click.BadParameter(why, param_hint="--autoscale")
    if sandbox:
        use_sandbox()
    client = open_client(patient=True)
    if sandbox and not client.settings.sandbox:
        raise click.UsageError("the settings of this site switch SANDBOX off: remove that line")
    configure_logging(client.settings.log_format, loglevel)
    with _sandbox_of(client.settings):
        run_worker(
            client.settings,
            queues=queues,
            pool=pool,
            concurrency=concurrency,
            loglevel=loglevel,
            with_parent=with_parent,
            alive_file=alive_file,
            extra=celery_options,
        )


@contextmanager
def _sandbox_of(settings: Settings) -> Iterator[None]:
    """The sandbox of the setting SANDBOX, in this process; one that already runs serves this worker, too."""
    if not settings.sandbox:
        yield
        return
    from batchpipe.sandbox import Sandbox, answers

    port = settings.sandbox_port
    server = Sandbox(port=port, data_dir=settings.home / "sandbox" / "worker")
    try:
        server.start()
    except OSError:
        if not answers(port):
            message = f"port {port} is in use by another program: set BATCHPIPE_SANDBOX_PORT"
            raise click.ClickException(message) from None
        say(f"the account `default` is the sandbox on port {port}, which runs already")
        yield
        return
    say(f"the account `default` is a sandbox on port {port}: no key, no cost")
    try:
        yield
    finally:
        server.stop()


@click.command("beat")
@loglevel_option
@alive_option
def beat_command(loglevel: str, alive_file: Path | None) -> None:
    """Run Celery beat: it has workers sweep every few seconds, and submit what the schedules say.

    One is enough; two do no harm. Workers and beat read the same batchpipe.toml.
    """
    from batchpipe.telemetry.logs import configure_logging
    from batchpipe.worker.process import run_beat

    client = open_client(patient=True)
    configure_logging(client.settings.log_format, loglevel)
    run_beat(client.settings, loglevel=loglevel, alive_file=alive_file)


@click.command("sandbox")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=WholeNumber(0, 65535), default=8089, show_default=True, help="0 takes a free one.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Keep files and batches here.")
@click.option("--validating-seconds", type=Number(min=0), default=0.2, help="Length of `validating`.  [0.2]")
@click.option("--rows-per-second", type=Number(min=0), default=5_000, show_default=True, help="Pace of a batch.")
@click.option(
    "--enqueued-tokens", metavar="[MODEL=]N", multiple=True, help="Tokens of a model in the queue at once; repeatable."
)
@click.option("--batches-in-flight", type=WholeNumber(min=1), help="Unfinished batches at once.")
@click.option("--creations-per-hour", type=WholeNumber(min=1), help="Batches created within an hour.")
@click.option("--uploads-per-minute", type=WholeNumber(min=1), help="Files uploaded within a minute.")
@click.option("--any-model", is_flag=True, help="Also accept model names that look misspelled.")
@click.option("--upstream", metavar="URL", help="Send each row to this OpenAI-compatible server.")
@click.option("--upstream-concurrency", type=WholeNumber(min=1), default=8, show_default=True, help="Rows at once.")
@click.option("--webhook-url", metavar="URL", help="Tell this URL of the ends of batches.")
@click.option("--ready-file", type=click.Path(dir_okay=False, path_type=Path), help="Gets the base URL when up.")
def sandbox_command(
    host: str,
    port: int,
    data_dir: Path | None,
    validating_seconds: float,
    rows_per_second: float,
    enqueued_tokens: tuple[str, ...],
    batches_in_flight: int | None,
    creations_per_hour: int | None,
    uploads_per_minute: int | None,
    any_model: bool,
    upstream: str | None,
    upstream_concurrency: int,
    webhook_url: str | None,
    ready_file: Path | None,
) -> None:
    """Run the local OpenAI-compatible Files and Batches server.

    The key for --upstream is read from BATCHPIPE_SANDBOX_UPSTREAM_KEY, the secret for
    --webhook-url from BATCHPIPE_SANDBOX_WEBHOOK_SECRET.
    """
    from batchpipe.config.environment import sandbox_upstream_key, sandbox_webhook_secret
    from batchpipe.sandbox.options import token_limits

    logging.basicConfig(level=logging.WARNING)
    try:
        limits = token_limits(enqueued_tokens)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--enqueued-tokens") from None
    options: OptionArgs = {
        "data_dir": data_dir,
        "validating_seconds": validating_seconds,
        "rows_per_second": rows_per_second,
        "enqueued_tokens": limits,
        "batches_in_flight": batches_in_flight,
        "creations_per_hour": creations_per_hour,
        "uploads_per_minute": uploads_per_minute,
        "any_model": any_model,
        "upstream": upstream,
        "upstream_concurrency": upstream_concurrency,
        "upstream_api_key": sandbox_upstream_key(),
        "webhook_url": webhook_url,
        "webhook_secret": sandbox_webhook_secret(),
    }
    _serve(port, host, ready_file, options)


def _serve(port: int, host: str, ready_file: Path | None, options: OptionArgs) -> None:
    from batchpipe.sandbox import serve
    from batchpipe.sandbox.options import Options, in_words_of_commands

    try:
        Options(**options)
    except ValueError as error:
        raise click.UsageError(in_words_of_commands(str(error))) from None
    try:
        serve(
            port,
            host,
            ready_file=ready_file,
            on_ready=lambda sandbox: say(f"sandbox listening on {sandbox.base_url}"),
            **options,
        )
    except OSError as error:
        raise cannot_listen(host, port, error) from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
