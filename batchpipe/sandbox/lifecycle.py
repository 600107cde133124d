"""The life of a batch: validating, in_progress, finalizing, and its four ends."""

from __future__ import annotations

import logging
import os
import random
import time
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from batchpipe.sandbox.batches import FINAL, Batch, Batches
from batchpipe.sandbox.clock import Clock
from batchpipe.sandbox.errors import ApiError
from batchpipe.sandbox.faults import ActiveFault, Faults
from batchpipe.sandbox.files import FileStore
from batchpipe.sandbox.ledger import Ledger
from batchpipe.sandbox.options import Options
from batchpipe.sandbox.quotas import Quotas
from batchpipe.sandbox.rows import RowResult, local_answer, run_row, skipped_line
from batchpipe.sandbox.upstream import Upstream
from batchpipe.sandbox.validation import Limits, check
from batchpipe.sandbox.webhooks import Webhooks

logger = logging.getLogger(__name__)

#: Rows per step, and rows after which the web server gets a chance to run (they share one interpreter).
STEP, BREATH = 64, 8
#: Pause between looks at something that may change without a poke.
LOOK = 0.05

_SKIPPED = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}
_TOKEN_LIMIT = (
    "Enqueued token limit reached for {model} in organization org-sandbox. Limit: 2,000,000 enqueued tokens. "
    "Please try again once some in_progress batches have been completed."
)
Life = Generator[float, None, None]


@dataclass
class Lifecycle:
    """Everything a batch's life touches."""

    options: Options
    clock: Clock
    files: FileStore
    batches: Batches
    faults: Faults
    ledger: Ledger
    upstream: Upstream | None
    webhooks: Webhooks
    quotas: Quotas

    def live(self, batch: Batch) -> Life:
        """The life of a batch, from its current state. Yields the time at which it wants to continue."""
        strange = self.faults.for_batch("unknown_status", batch.metadata or {}) if batch.total == 0 else None
        if strange is not None:
            yield from self._unknown(batch, strange)
        if batch.total == 0:
            yield from self._validate(batch)
        if not batch.is_final:
            yield from self._rows(batch)
            yield from self._close(batch)

    def broke(self, batch_id: str, error: Exception) -> None:
        """A batch that the sandbox itself could not run ends as failed."""
        try:
            batch = self.batches.find(batch_id)
            self._fail(batch, [_error("server_error", f"The sandbox could not run this batch: {error!r}")])
        except (ApiError, OSError):
            logger.exception("batch %s cannot be marked as failed", batch_id)

    # Where a batch is heading

    def _ending(self, batch: Batch) -> str | None:
        """The end that a batch must go to now, or None."""
        if batch.forced is not None:
            return batch.forced
        if batch.status == "cancelling":
            return "cancelled"
        return "expired" if self.clock.now() >= batch.expires else None

    def _sleep(self, batch: Batch, until: float) -> Life:
        while self._ending(batch) is None and self.clock.now() < until:
            yield until

    def _enter(self, batch: Batch, status: str) -> None:
        with self.batches.lock:
            # A cancel that came in between is not overwritten by mere progress.
            if batch.status != "cancelling" or status in ("cancelled", "completed", "expired", "failed"):
                batch.status = status
            batch.times[status] = int(self.clock.now())
            self.batches.save(batch)
        self._tell(batch, status)

    def _tell(self, batch: Batch, status: str) -> None:
        """Webhooks tell of ends only. One that comes early is sent before a read shows the end."""
        if status == "finalizing" and self.faults.for_batch("webhook_early", batch.metadata or {}) is not None:
            batch.told = True
            self.webhooks.announce(batch, "completed")
        elif status in FINAL and not batch.told:
            self.webhooks.announce(batch, status)

    def _unknown(self, batch: Batch, strange: ActiveFault) -> Life:
        """For so many seconds, or until the fault is switched off."""
        status, until = strange.fault.message or "queued_somewhere", batch.created + strange.fault.seconds
        with self.batches.lock:
            if batch.status == "validating":
                batch.status = status
        while self._ending(batch) is None and self.clock.now() < until and self.faults.is_on(strange.id):
            yield until
        with self.batches.lock:
            if batch.status == status:
                batch.status = "validating"

    # validating

    def _validate(self, batch: Batch) -> Life:
        yield from self._sleep(batch, batch.created + self.options.validating_seconds)
        metadata = batch.metadata or {}
        if self._ending(batch) == "cancelled":
            return (yield from self._close(batch))
        if self._ending(batch) == "failed":
            return self._fail(batch, batch.errors or [_error("server_error", "The batch was ended by hand.")])
        limits = Limits(self.options.max_rows, self.options.max_file_bytes, self.options.max_embedding_inputs)
        # an upstream has models of its own, as deployments of Azure have names of their own
        any_model = self.options.any_model or self.options.upstream is not None or batch.azure
        path = self._path(batch, "input")
        counts = self.quotas.limits_tokens
        steps = check(path, batch.endpoint, limits, azure=batch.azure, any_model=any_model, count_tokens=counts)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                report = end.value
                break
            time.sleep(1e-5)  # gives the interpreter to the web server
            yield 0.0
        batch.model = report.model
        fault = self.faults.for_batch("token_limit", metadata, "validation")
        if fault is not None:
            message = fault.fault.message or _TOKEN_LIMIT.format(model=report.model)
            report.errors = [_error("token_limit_exceeded", message)]
        elif (fault := self.faults.for_batch("fail_batch", metadata)) is not None:
            code, message = (
                fault.fault.code or "invalid_request",
                fault.fault.message or "The batch was refused.",
            )
            report.errors = fault.fault.errors or [_error(code, message)]
        if not report.errors and (full := self.quotas.enqueue(batch, report.tokens)) is not None:
            report.errors = [_error("token_limit_exceeded", full)]
        if report.errors:
            return self._fail(batch, report.errors)
        random.Random(self.options.seed or batch.id).shuffle(report.offsets)
        with self._path(batch, "offsets").open("wb") as file:
            report.offsets.tofile(file)
        batch.total = len(report.offsets)
        # Read before the new status is visible: a client that sees it may move the clock at once.
        batch.paced_from = self.clock.now()
        self._enter(batch, "in_progress")

    def _fail(self, batch: Batch, errors: list[dict[str, Any]]) -> None:
        with self.batches.lock:
            batch.errors = errors
            batch.total = batch.completed = batch.failed = 0
            self._enter(batch, "failed")
        self._tidy(batch)

    # in_progress

    def _rows(self, batch: Batch) -> Life:
        order = self._order(batch)
        self._cut_back(batch)
        metadata = batch.metadata or {}
        stop = self.faults.for_batch("expire", metadata)
        limit = len(order)
        if stop is not None:
            limit = int(limit * (0.5 if stop.fault.fraction is None else stop.fault.fraction))
        stuck = self.faults.for_batch("stuck", metadata)
        while stuck is not None and self._ending(batch) is None and self.faults.is_on(stuck.id):
            yield batch.expires  # anything else that may free it pokes it
            batch.paced_from = None
        run = self._run_upstream if self.upstream is not None else self._run_here
        yield from run(batch, order, limit)
        if batch.forced == "completed" and batch.position < batch.total:
            yield from run(batch, order, batch.total)
        if stop is not None and self._ending(batch) is None:
            batch.forced = "expired"

    def _begin(self, batch: Batch) -> tuple[float, int]:
        """The time and the row from which on the pace is counted."""
        return batch.paced_from or self.clock.now(), batch.position

    def _allowance(self, batch: Batch, began: float, base: int) -> int:
        """How many rows may have been run by now."""
        if self.options.rows_per_second is None or batch.forced == "completed":
            return batch.total
        return base + int((self.clock.now() - began) * self.options.rows_per_second)

    def _run_here(self, batch: Batch, order: Sequence[int], limit: int) -> Life:
        began, base = self._begin(batch)
        while batch.position < limit and self._ending(batch) in (None, "completed"):
            upto = min(limit, batch.position + STEP, self._allowance(batch, began, base))
            results = []
            for position, raw in self._lines(batch, order, range(batch.position, upto)):
                results.append(run_row(batch, position, raw, self.faults, local_answer))
                if position % BREATH == 0:
                    time.sleep(1e-5)
            self._keep(batch, results)
            # 0 means at once, but after the other batches that are due.
            pace = self.options.rows_per_second
            yield 0.0 if pace is None or results else self.clock.now() + max(0.01, 1 / pace)

    def _run_upstream(self, batch: Batch, order: Sequence[int], limit: int) -> Life:
        assert self.upstream is not None
        began, base = self._begin(batch)
        asked = batch.position
        waiting: deque[Future[RowResult]] = deque()
        while batch.position < limit:
            open_to = min(limit, self._allowance(batch, began, base))
            if self._ending(batch) not in (None, "completed"):
                open_to = asked
            upto = min(open_to, asked + self.upstream.window - len(waiting))
            for position, raw in self._lines(batch, order, range(asked, upto)):
                work = partial(run_row, batch, position, raw, self.faults, self.upstream.answer)
                waiting.append(self.upstream.submit(work))
                waiting[-1].add_done_callback(lambda future: self.batches.poke(batch.id))
                asked = position + 1
            if not waiting and self._ending(batch) not in (None, "completed"):
                break
            done = []
            while waiting and waiting[0].done():
                done.append(waiting.popleft().result())
            self._keep(batch, done)
            yield 0.0 if done else self.clock.now() + LOOK

    def _keep(self, batch: Batch, results: list[RowResult]) -> None:
        """Write the results of some rows: lines, ledger, counts; in this order a kill loses nothing."""
        if not results:
            return
        output, error = b"".join(r.output for r in results), b"".join(r.error for r in results)
        self._append(batch, "output", output)
        self._append(batch, "error", error)
        self.ledger.add(r.ledger for r in results if r.ledger is not None)
        with self.batches.lock:
            batch.position += len(results)
            batch.completed += sum(r.completed for r in results)
            batch.failed += sum(r.failed for r in results)
            batch.output_bytes += len(output)
            batch.error_bytes += len(error)
            for result in results:
                batch.usage.add(result.usage)
            self.batches.save(batch)

    # The ends

    def _close(self, batch: Batch) -> Life:
        if self._ending(batch) in (None, "completed") and batch.total:
            until = self.clock.now() + self.options.finalizing_seconds
            self._enter(batch, "finalizing")
            yield from self._sleep(batch, until)
        ending = self._ending(batch) or "completed"
        if batch.position >= batch.total > 0 and ending == "expired" and batch.forced is None:
            ending = "completed"  # all was done in time
        if ending == "failed":
            return self._fail(batch, batch.errors or [_error("server_error", "The batch was ended by hand.")])
        if ending == "cancelled" and batch.forced is None:
            asked = batch.times.get("cancelling", 0)
            while self.clock.now() < asked + self.options.cancelling_seconds and batch.forced is None:
                yield asked + self.options.cancelling_seconds
        if ending in _SKIPPED:
            yield from self._skip(batch, *_SKIPPED[ending])
        output = self._publish(batch, "output")
        error = self._publish(batch, "error")
        late = self.faults.for_batch("file_id_lags", batch.metadata or {})
        with self.batches.lock:
            batch.output_file_id, batch.error_file_id = output, error
            if late is not None:
                batch.files_hidden_until = self.clock.now() + late.fault.seconds
            self._enter(batch, ending)
        self._tidy(batch)

    def _skip(self, batch: Batch, code: str, message: str) -> Life:
        """Write a line for each row that was not run. They count as neither completed nor failed."""
        if not batch.total:
            return
        order = self._order(batch)
        for start in range(batch.position, len(order), STEP):
            raw_lines = [raw for _, raw in self._lines(batch, order, range(start, min(start + STEP, len(order))))]
            self._append(batch, "error", b"".join(skipped_line(batch, raw, code, message) for raw in raw_lines))
            time.sleep(1e-5)
            yield 0.0

    def _publish(self, batch: Batch, name: str) -> str | None:
        path = self._path(batch, name)
        if not path.exists() or path.stat().st_size == 0:
            return None
        filename = f"{batch.id}_{name}.jsonl"
        part, whole_at = self._lagging(batch, path)
        return self.files.adopt(
            path,
            filename=filename,
            purpose="batch_output",
            expires_after=batch.output_expires_after,
            part=part,
            whole_at=whole_at,
            project=batch.project,
        ).id

    def _lagging(self, batch: Batch, path: Path) -> tuple[int, float]:
        """How many bytes of a result file, always whole lines, are visible at first, and until when."""
        late = self.faults.for_batch("file_lags", batch.metadata or {})
        if late is None:
            return 0, 0.0
        data = path.read_bytes()
        part = data.rfind(b"\n", 0, int(len(data) * (late.fault.fraction or 0.0))) + 1
        return part, self.clock.now() + late.fault.seconds

    # The batch's folder

    def _path(self, batch: Batch, name: str) -> Path:
        return self.batches.folder(batch.id) / name

    def _lines(self, batch: Batch, order: Sequence[int], positions: range) -> Iterator[tuple[int, bytes]]:
        """The input lines at these places of the run. The file is open only for this: there may be many batches."""
        if positions:
            with self._path(batch, "input").open("rb") as source:
                for position in positions:
                    source.seek(order[position])
                    yield position, source.readline()

    def _append(self, batch: Batch, name: str, data: bytes) -> None:
        if data:
            with self._path(batch, name).open("ab") as file:
                file.write(data)

    def _order(self, batch: Batch) -> array[int]:
        order = array("Q")
        order.frombytes(self._path(batch, "offsets").read_bytes())
        return order

    def _cut_back(self, batch: Batch) -> None:
        """Drop what a killed sandbox had written of rows that its record does not know."""
        for name, size in (("output", batch.output_bytes), ("error", batch.error_bytes)):
            path = self._path(batch, name)
            if path.exists():
                os.truncate(path, size)

    def _tidy(self, batch: Batch) -> None:
        for name in ("input", "offsets", "output", "error"):
            self._path(batch, name).unlink(missing_ok=True)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": None, "message": message, "param": None}
