"""How long a person waits for `batchpipe list`, `status last` and `submit`.

    python bench/commands.py [--runs 11]

On a Redis of its own, where a worker has noted that it listens and where none has; medians of wall time and of CPU,
start of the interpreter included, with compiled modules. In the same run, in turn: `python -c pass`, and the imports of
celery and redis, as a program without batchpipe has them. Exits 1 if a `list` takes more than 3 times, or a `submit`
more than 4.5 times the CPU of those imports, or if one of them takes half a second longer where no worker listens: it
would wait for answers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import count
from pathlib import Path

import redis
from waiting import redis_server

ROW = '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}'
LISTENING, NOTE = "{batchpipe}:listening", "batchpipe\nworker"
PASS, IMPORTS = "python -c pass", "import celery, redis"
MOST_WAITED, MOST_LIST, MOST_SUBMIT = 0.5, 3.0, 4.5

#: The wall time and the CPU of a run, in seconds.
Taken = tuple[float, float]


def run(words: list[str], env: dict[str, str], folder: Path) -> Taken:
    with open(os.devnull, "wb") as nowhere:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], env=env, cwd=folder, stdout=nowhere, stderr=nowhere)
        _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def measure(folder: Path, store: redis.Redis, runs: int) -> dict[str, list[Taken]]:
    env = {
        "PATH": os.environ["PATH"],
        "BATCHPIPE_REDIS_URL": f"unix://{folder}/redis.sock",
        "BATCHPIPE_BROKER_URL": f"redis+socket://{folder}/redis.sock",
        "BATCHPIPE_HOME": f"{folder}/home",
        "OPENAI_API_KEY": "bench",
    }
    source, numbers, taken = folder / "in.jsonl", count(), defaultdict[str, list[Taken]](list)
    source.write_text(ROW + "\n")

    def submit() -> list[str]:
        return ["-m", "batchpipe", "submit", str(source), "-o", f"{folder}/out-{next(numbers)}"]

    run(submit(), env, folder)  # compiles what is not compiled yet
    for _ in range(runs):
        taken[PASS].append(run(["-c", "pass"], env, folder))
        taken[IMPORTS].append(run(["-c", IMPORTS], env, folder))
        for heard in (True, False):
            if heard:
                store.zadd(LISTENING, {NOTE: time.time() + 86_400})
            else:
                store.delete(LISTENING)
            where = "" if heard else ", no worker"
            taken[f"list{where}"].append(run(["-m", "batchpipe", "list"], env, folder))
            taken[f"status last{where}"].append(run(["-m", "batchpipe", "status", "last"], env, folder))
            taken[f"submit{where}"].append(run(submit(), env, folder))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=11)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="bp-") as name, redis_server(Path(name)) as store:
        taken = measure(Path(name), store, runs)
    wall = {what: statistics.median(one[0] for one in found) for what, found in taken.items()}
    cpu = {what: statistics.median(one[1] for one in found) for what, found in taken.items()}
    print(f"{'':24}{'wall s':>8} {'CPU s':>8}")
    for what in taken:
        print(f"{what:24}{wall[what]:8.2f} {cpu[what]:8.2f}")
    listed, submitted = cpu["list"] / cpu[IMPORTS], cpu["submit"] / cpu[IMPORTS]
    print(
        f"list {listed:.1f} times the CPU of the imports (at most {MOST_LIST}), submit {submitted:.1f} ({MOST_SUBMIT})"
    )
    waited = max(wall[f"{what}, no worker"] - wall[what] for what in ("list", "submit"))
    print(f"{waited:.2f} s longer where no worker listens (at most {MOST_WAITED})")
    good = listed <= MOST_LIST and submitted <= MOST_SUBMIT and waited <= MOST_WAITED
    print("ok" if good else "MISSED")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
