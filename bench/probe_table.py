"""What ``batchpipe probe`` finds out about the servers that are at hand: the table of docs/providers.md.

    python bench/probe_table.py [--write]

At hand are the sandbox, and the sandbox with the faults that make it act like servers that can do less. ``--write``
puts the table into the page.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from batchpipe.client.capabilities import Capabilities
from batchpipe.client.probe import Probe
from batchpipe.config.account import Account
from batchpipe.provider.api import Api
from batchpipe.sandbox import Fault, Sandbox

PAGE = Path(__file__).parents[1] / "docs" / "providers.md"
BEGIN, END = "<!-- probed: python bench/probe_table.py --write -->\n", "<!-- end -->"

#: Server -> the faults that make the sandbox act like it.
SERVERS: dict[str, list[dict[str, Any]]] = {
    "sandbox": [],
    "lists without metadata": [{"kind": "no_metadata"}],
    "no list": [{"kind": "status", "route": "GET /v1/batches", "status": 404}],
    "no cancel": [{"kind": "status", "route": "POST /v1/batches/{id}/cancel", "status": 404}],
}


def probed(faults: list[dict[str, Any]]) -> Capabilities:
    with Sandbox(validating_seconds=0.05, seed="probe") as sandbox:
        for fault in faults:
            sandbox.faults.add(Fault.from_json(fault))
        account = Account(base_url=sandbox.base_url, api_key=SecretStr("sandbox"), sandbox=True)
        api = Api(account)
        probe = Probe(
            api,
            account,
            "default",
            model="gpt-4o-mini",
            endpoint="/v1/chat/completions",
            window="24h",
            timeout=60.0,
            keyed=partial(api.with_header, "Idempotency-Key"),
        )
        return probe.run()


def table() -> str:
    """Markdown: a row for each question, a column for each server."""
    found = {server: probed(faults) for server, faults in SERVERS.items()}
    answers = {server: {one.what: one.value for one in probe.found} for server, probe in found.items()}
    questions = list(dict.fromkeys(one.what for probe in found.values() for one in probe.found))
    lines = [f"| | {' | '.join(answers)} |", f"| --- |{' --- |' * len(answers)}"]
    for question in questions:
        cells = [answers[server].get(question, "") or "unknown" for server in answers]
        lines.append(f"| {question} | {' | '.join(cells)} |")
    settings = [" ".join(f"`{name}={value}`" for name, value in probe.settings.items()) for probe in found.values()]
    return "\n".join([*lines, f"| settings | {' | '.join(settings)} |"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/providers.md")
    options = parser.parse_args()
    logging.getLogger("uvicorn.error").disabled = True
    made = table()
    if options.write:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
