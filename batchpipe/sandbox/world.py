"""All parts of one sandbox, put together."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from batchpipe.sandbox.batches import Batch, Batches
from batchpipe.sandbox.calls import CallLog
from batchpipe.sandbox.clock import Clock
from batchpipe.sandbox.engine import Engine
from batchpipe.sandbox.faults import Faults
from batchpipe.sandbox.files import FileStore
from batchpipe.sandbox.ledger import Ledger
from batchpipe.sandbox.lifecycle import Lifecycle
from batchpipe.sandbox.options import Options
from batchpipe.sandbox.quotas import Quotas
from batchpipe.sandbox.upstream import Upstream
from batchpipe.sandbox.webhooks import Webhooks


class World:
    """State and engine of a sandbox, without its web server."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._temporary = options.data_dir is None
        self.folder = Path(options.data_dir or tempfile.mkdtemp(prefix="batchpipe-sandbox-")).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clock = Clock()
        self.calls = CallLog()
        self.faults = Faults(options.seed)
        self.files = FileStore(self.folder / "files", self.clock)
        self.ledger = Ledger(self.folder / "ledger.sqlite3")
        self.batches = Batches(self.folder / "batches", self.clock)
        self.quotas = Quotas(options, self.clock, self.batches)
        self.upstream = Upstream(options) if options.upstream else None
        self.webhooks = Webhooks(options.webhook_url, options.webhook_secret, self.faults)
        self._lifecycle = Lifecycle(
            options,
            self.clock,
            self.files,
            self.batches,
            self.faults,
            self.ledger,
            self.upstream,
            self.webhooks,
            self.quotas,
        )
        self._engine = Engine(self.clock, self._lifecycle.broke)
        self.batches.poke = self._engine.poke
        self.clock.on_move(self._engine.poke_all)
        self.faults.on_change(self._engine.poke_all)

    def start(self) -> None:
        """Start the engine; batches that an earlier sandbox left unfinished go on."""
        for batch in self.batches.all():
            if not batch.is_final:
                batch.paced_from = None
                self.run(batch)
        self.webhooks.start()
        self._engine.start()

    def run(self, batch: Batch) -> None:
        """Start a batch."""
        self._engine.add(batch.id, self._lifecycle.live(batch))

    def reset(self) -> None:
        """Remove files, batches, faults, calls and ledger, and reset the clock."""
        with self._engine.standstill:
            self._engine.clear()
            self.batches.clear()
            self.quotas.clear()
            self.files.clear()
            self.ledger.clear()
        self.faults.clear()
        self.calls.clear()
        self.clock.reset()

    def close(self) -> None:
        """Stop the engine and remove a temporary data folder."""
        self._engine.stop()  # first: rows that the upstream drops now are not failed rows
        self.webhooks.close()
        if self.upstream is not None:
            self.upstream.close()
        self.ledger.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
