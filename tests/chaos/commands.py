"""What a child of the forkserver does: the same calls as the commands of this name make."""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.chaos import points


def _client() -> Any:
    points.install_from_environment()
    from batchpipe.client.client import Client
    from batchpipe.config.loading import load_settings
    from batchpipe.telemetry.logs import configure_logging

    client = Client(load_settings(env_file=None))
    configure_logging("text", "INFO")
    return client


def worker(pool: str = "threads", concurrency: int = 4, sweep_every: float = 0.0, receivers: str = "") -> None:
    """``batchpipe worker``. ``sweep_every`` lets it sweep at that pace, too: it heals sooner. ``receivers``: it has
    loaded a site, whose receivers note in this folder of what they have heard.
    """
    from batchpipe.worker.process import run_worker

    client = _client()
    if receivers:
        _load_site(Path(receivers))
    if sweep_every:
        threading.Thread(target=_sweep_on, args=(client, sweep_every), daemon=True).start()
    run_worker(client.settings, pool=pool, concurrency=concurrency)


def _sweep_on(client: Any, pause: float) -> None:
    from batchpipe.errors import BatchpipeError

    while not threading.Event().wait(pause):
        with suppress(BatchpipeError):
            client.sweep()


def _load_site(folder: Path) -> None:
    from batchpipe.config.site import DJANGO, current_site

    def receive(job_id: str) -> None:
        if (folder / "fail").exists() and random.random() < 0.5:
            raise RuntimeError("a receiver of the site fails")
        (folder / job_id).touch()

    current_site().receivers[DJANGO] = receive


def beat() -> None:
    """``batchpipe beat``."""
    from batchpipe.worker.process import run_beat

    run_beat(_client().settings)


def submit(key: str, told: str, *, heard: bool = False, **options: Any) -> None:
    """Submit a job under a key and write its id to the file ``told``. Redis may be away: ends with code 3; so it does
    where the output is another's. ``heard``: from within a site, whose receivers are to hear of the job's end.
    """
    from batchpipe.config.site import DJANGO, current_site
    from batchpipe.errors import InvalidInput, OutputInUse, StoreUnavailable

    if heard:
        current_site().receivers[DJANGO] = lambda job_id: None
    try:
        job = _client().submit(key=key, **options)
    except (StoreUnavailable, OutputInUse):
        raise SystemExit(3) from None
    except InvalidInput as error:
        if error.code != "output_foreign":
            raise
        Path(f"{told}.refused").touch()
        raise SystemExit(4) from None
    part = Path(f"{told}.part")
    part.write_text(job.id)
    os.replace(part, told)


def cancel(job: str) -> None:
    """``batchpipe cancel``."""
    from batchpipe.errors import StoreUnavailable

    try:
        _client().cancel(job)
    except StoreUnavailable:
        raise SystemExit(3) from None


def land(job: str) -> None:
    """``batchpipe land``."""
    _client().land(job)


def sweep() -> None:
    """``batchpipe sweep``: one pass, with a look into the provider's list."""
    _client().sweep(listing=True)


def program(command: list[str]) -> None:
    """Another program in our place."""
    os.execv(command[0], command)
