"""Start the whole example: a Redis of its own, a stand-in for the provider, a worker and the web server.

    python examples/flask_app/start.py

Ctrl-C ends all of it, and nothing is left behind. Nothing of yours is used or billed: no Redis, no key.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from batchpipe.local_redis import acquire
from batchpipe.sandbox import Sandbox

HERE = Path(__file__).resolve().parent
STOP_SECONDS = 15.0


def environment(data: Path, redis_url: str, provider: Sandbox) -> dict[str, str]:
    """What web server and worker read. In real life these lines stand in your deployment's settings."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHPIPE_", "OPENAI_"))}
    return {
        **ours,
        "FLASK_SECRET_KEY": f"s-{secrets.token_hex(32)}",
        "FLASK_TABLES": str(data / "tables"),
        "FLASK_BATCHPIPE_REDIS_URL": redis_url,
        "FLASK_BATCHPIPE_HOME": str(data / "home"),
        "FLASK_BATCHPIPE_WORKSPACE": str(data / "jobs"),
        "FLASK_BATCHPIPE_POLL_MIN_SECONDS": "0.5",
        "FLASK_BATCHPIPE_ACCOUNTS__default__base_url": provider.base_url,
        "FLASK_BATCHPIPE_ACCOUNTS__default__api_key": "sandbox",
        "FLASK_BATCHPIPE_ACCOUNTS__default__sandbox": "true",
    }


@contextmanager
def process(*arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is told to stop, and given time to hand back its work, when this ends."""
    child = subprocess.Popen([sys.executable, *arguments], cwd=HERE, env=env, start_new_session=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run(port: int, rows_per_second: float) -> None:
    """Returns when one of the processes has ended, which none should."""
    with ExitStack() as house:
        data = Path(house.enter_context(tempfile.TemporaryDirectory(prefix="flask_app-")))
        redis = house.enter_context(acquire(data / "home")).server
        provider = house.enter_context(Sandbox(data_dir=data / "provider", rows_per_second=rows_per_second))
        env = environment(data, redis.url, provider)
        celery = ("-m", "celery", "-A", "make_celery", "worker", "--pool", "threads", "--concurrency", "4")
        worker = house.enter_context(process(*celery, "--loglevel", "WARNING", env=env))
        web = house.enter_context(process("-m", "flask", "--app", "shop", "run", "--port", str(port), env=env))
        while not listens(port) and web.poll() is None:
            time.sleep(0.1)
        print(f"Ready: open http://127.0.0.1:{port}/   (Ctrl-C ends everything)", flush=True)
        while worker.poll() is None and web.poll() is None:
            time.sleep(0.3)


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=5000, help="of the web server; 0 takes a free one")
    parser.add_argument("--rows-per-second", type=float, default=2.0, help="pace of the provider")
    options = parser.parse_args()
    port = options.port or free_port()
    if listens(port):
        print(f"Port {port} is taken: try --port 0", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, stop)
    try:
        run(port, options.rows_per_second)
    except KeyboardInterrupt:
        return 0
    print("A process has ended by itself; see what it said above.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
