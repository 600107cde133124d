"""Write a travel guide to 3,600 real airports: the demo of batchpipe (`make demo`).

It runs against the sandbox, a local stand-in for OpenAI's Batch API: no key, no cost, a few seconds.
The last lines it prints are the command for the real thing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import airportsdata

CLONE = Path(__file__).resolve().parents[1]
EDITOR = "You edit a travel guide. Introduce the airport in two friendly sentences. Use only the given facts."


def requests(rows: int) -> Iterator[dict[str, Any]]:
    """One chat completion for each of the first airports by IATA code: the same ones every time."""
    for code, airport in sorted(airportsdata.load("IATA").items())[:rows]:
        place = ", ".join(airport[key] for key in ("city", "subd", "country") if airport[key])
        facts = (
            f"{airport['name']} ({code}), {place}. Elevation {airport['elevation']:.0f} feet, "
            f"position {airport['lat']:.4f}, {airport['lon']:.4f}, time zone {airport['tz']}."
        )
        yield {
            "custom_id": f"airport-{code}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o-mini",
                "messages": [{"role": "system", "content": EDITOR}, {"role": "user", "content": facts}],
                "max_tokens": 60,
            },
        }


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:  # not splitlines(): it also splits at rare characters
        return [json.loads(line) for line in file]


def run(input_file: Path, results: Path, home: Path) -> int:
    """Run the command as a user would, but with settings of its own: nothing of yours is used or billed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHPIPE_", "OPENAI_"))}
    command = [sys.executable, "-m", "batchpipe", "run", str(input_file), "-o", str(results)]
    options = ["--max-rows", "1200", "--sandbox", "--name", "airport guide"]
    return subprocess.run(
        command + options,
        env=environment | {"BATCHPIPE_HOME": str(home)},
        cwd=home,  # not the clone: there may be a .env
        check=False,
    ).returncode


def check(wanted: list[str], results: Path) -> list[dict[str, Any]]:
    """Return the answers, or end with what is wrong with them."""
    state = json.loads((results / "job.json").read_text(encoding="utf-8"))["state"]
    answers = read_lines(results / "output.jsonl")
    if state != "succeeded":
        sys.exit(f"The job ended as {state}, not succeeded.")
    if [answer["custom_id"] for answer in answers] != wanted:
        sys.exit(f"{len(answers):,} answers do not match the {len(wanted):,} requests in number and order.")
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=3600, metavar="N", help="number of airports")
    parser.add_argument("--output", type=Path, default=CLONE / "demo-output", metavar="DIR")
    parser.add_argument("--requests-only", action="store_true", help="write the requests, run nothing")
    options = parser.parse_args()

    folder: Path = options.output.resolve()
    input_file, results, home = folder / "airports.jsonl", folder / "results", folder / "home"
    for old in (results, home):  # the demo always starts afresh, also after one that was broken off
        shutil.rmtree(old, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    with input_file.open("w", encoding="utf-8") as file:
        for request in requests(options.rows):
            file.write(json.dumps(request, ensure_ascii=False) + "\n")
    wanted = [request["custom_id"] for request in read_lines(input_file)]
    print(f"{len(wanted):,} requests: {input_file}", flush=True)
    if options.requests_only:
        return

    if code := run(input_file, results, home):
        sys.exit(f"batchpipe run ended with exit code {code}.")
    answers = check(wanted, results)

    print(f"\n{len(answers):,} answers in input order: {results / 'output.jsonl'}")
    for answer in (answers[0], answers[-1]):
        text = answer["response"]["body"]["choices"][0]["message"]["content"]
        print(f"  {answer['custom_id']}: {text}")
    real = ["batchpipe", "run", str(input_file), "-o", str(folder / "openai"), "--name", "airport guide"]
    print("\nThe same against OpenAI, which costs money:")
    print(f"  export OPENAI_API_KEY=...\n  {shlex.join(real)}")


if __name__ == "__main__":
    main()
