"""`python -m batchpipe.sandbox`: run the sandbox until it is told to stop."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from batchpipe.sandbox.faults import Fault
from batchpipe.sandbox.options import OptionArgs, in_words_of_commands, token_limits
from batchpipe.sandbox.server import Sandbox, serve

#: The upstream's key comes from the environment, because others can read command lines.
KEY_VARIABLE = "BATCHPIPE_SANDBOX_UPSTREAM_KEY"
#: So does the secret of webhooks.
SECRET_VARIABLE = "BATCHPIPE_SANDBOX_WEBHOOK_SECRET"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m batchpipe.sandbox", description="A local OpenAI-compatible Files and Batches server."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8089, help="port to listen on, 0 for a free one (%(default)s)")
    parser.add_argument("--data-dir", metavar="DIR", help="keep files, batches and ledger here")
    parser.add_argument("--ready-file", metavar="FILE", help="write the base URL to this file when listening")
    parser.add_argument("--validating-seconds", type=float, default=0.2, help="least time in validating (%(default)s)")
    parser.add_argument("--rows-per-second", type=float, default=5000.0, help="speed of each batch (%(default)s)")
    words = "tokens in the queue at once: N, or MODEL=N; repeatable"
    parser.add_argument("--enqueued-tokens", metavar="LIMIT", action="append", default=[], help=words)
    parser.add_argument("--batches-in-flight", type=int, help="unfinished batches at once")
    parser.add_argument("--creations-per-hour", type=int, help="batches created within an hour")
    parser.add_argument("--uploads-per-minute", type=int, help="files uploaded within a minute")
    parser.add_argument("--seed", help="fixes the order of output and the dice of faults")
    parser.add_argument("--any-model", action="store_true", help="also accept model names that look misspelled")
    parser.add_argument("--upstream", metavar="URL", help=f"send rows to this server (its key: {KEY_VARIABLE})")
    parser.add_argument("--upstream-concurrency", type=int, default=8, help="rows under way at a time (%(default)s)")
    parser.add_argument("--webhook-url", metavar="URL", help=f"tell it of ends of batches (secret: {SECRET_VARIABLE})")
    parser.add_argument("--fault", metavar="JSON", action="append", default=[], help="switch a fault on; repeatable")
    return parser


def _ready(sandbox: Sandbox) -> None:
    print(f"sandbox listening on {sandbox.base_url}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        enqueued_tokens = token_limits(args.enqueued_tokens)
    except ValueError as error:
        parser.error(f"--enqueued-tokens: {error}")
    options: OptionArgs = {
        "enqueued_tokens": enqueued_tokens,
        "batches_in_flight": args.batches_in_flight,
        "creations_per_hour": args.creations_per_hour,
        "uploads_per_minute": args.uploads_per_minute,
        "data_dir": args.data_dir,
        "validating_seconds": args.validating_seconds,
        "rows_per_second": args.rows_per_second,
        "seed": args.seed,
        "any_model": args.any_model,
        "upstream": args.upstream,
        "upstream_concurrency": args.upstream_concurrency,
        "upstream_api_key": os.environ.get(KEY_VARIABLE),
        "webhook_url": args.webhook_url,
        "webhook_secret": os.environ.get(SECRET_VARIABLE),
    }
    try:
        faults = [Fault.from_json(json.loads(text)) for text in args.fault]
        serve(args.port, args.host, ready_file=args.ready_file, on_ready=_ready, faults=faults, **options)
    except ValueError as error:
        parser.error(in_words_of_commands(str(error)))
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
