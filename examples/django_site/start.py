"""Start the example: a Redis, a stand-in for OpenAI, the site, its worker and beat. Ctrl-C ends them all.

    python examples/django_site/start.py [--port 8000] [--data DIR]

No key is needed and nothing is paid: the worker talks to batchpipe's sandbox.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from batchpipe.local_redis import acquire
from batchpipe.sandbox import Sandbox

HERE = Path(__file__).resolve().parent
WORKER = ("-m", "celery", "-A", "proj", "worker", "--pool", "threads", "--concurrency", "4", "--loglevel", "INFO")
BEAT = ("-m", "celery", "-A", "proj", "beat", "--loglevel", "WARNING")
#: How long a process may take to hand back its work.
GRACE_SECONDS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="of the site [8000]")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder for all that is kept [data]")
    options = parser.parse_args()
    options.data.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as house:
        redis = house.enter_context(acquire(options.data / "home"))
        sandbox = house.enter_context(Sandbox(data_dir=options.data / "sandbox", rows_per_second=4))
        site = {
            "CATALOGUE_DATA": str(options.data.absolute()),
            "REDIS_URL": redis.server.url,
            "BATCHPIPE_HOME": str(options.data.absolute() / "home"),
            "BATCHPIPE_ACCOUNTS__DEFAULT__SANDBOX": "true",
            "BATCHPIPE_POLL_MIN_SECONDS": "1",
        }
        worker = {**site, "OPENAI_BASE_URL": sandbox.base_url, "OPENAI_API_KEY": "sandbox"}
        prepare = [sys.executable, "manage.py", "prepare"]
        subprocess.run(prepare, cwd=HERE, env={**os.environ, **site}, check=True)
        address = f"127.0.0.1:{options.port}"
        processes = [
            house.enter_context(running(site, "manage.py", "runserver", "--noreload", address)),
            house.enter_context(running(worker, *WORKER)),
            house.enter_context(running(worker, *BEAT)),
        ]
        print(f"\nThe catalogue is at http://{address}/ - log in as admin with the password admin\n", flush=True)
        while all(process.poll() is None for process in processes):
            time.sleep(0.2)
        print("A process has ended; see above.", file=sys.stderr)
        return 1


class running:  # noqa: N801 - reads like a function
    """A process as long as the block runs; at its end it may hand back its work."""

    def __init__(self, environment: Mapping[str, str], *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=HERE, env={**os.environ, **environment}, start_new_session=True
        )

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # all is ended by then
        sys.exit(0)
