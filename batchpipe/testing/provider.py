"""An in-process stand-in for ``provider.api.Api``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, TypeVar

import msgspec
import orjson

from batchpipe.errors import FILE_NOT_FOUND, Gone, Refused, Unavailable
from batchpipe.model.provider import Batch, BatchPage, Provider, Resumable, StoredFile
from batchpipe.model.records import BatchError, Counts, Status
from batchpipe.testing.things import Answer, Call, FakeBatch, FakeFile, polite_answer

_PAGE = 100
T = TypeVar("T")


@dataclass
class _Failure:
    error: BaseException
    left: int
    processed: bool


class FakeOpenAI(Provider):
    """An in-process provider with the methods and errors of ``provider.api.Api``.

    A batch stays as it is until ``finish``, ``expire`` or ``fail`` ends it; with ``autofinish`` each look at it, by
    itself or on a page, moves it on: validating, in_progress, completed. Result lines come in reverse order of the
    requests.
    """

    def __init__(self, clock: Callable[[], float] = time.time, *, autofinish: bool = False) -> None:
        self.clock = clock
        self.autofinish = autofinish
        self.project = ""  #: the project that the key belongs to: files and batches made in another one are not visible
        self.echo_metadata = True  #: False: batches come without their metadata, as with some servers
        self.list_metadata = True  #: False: only the list comes without metadata
        self.rewrites_files = False  #: batches show another input_file_id than the upload gave, as some gateways do
        self.answer: Callable[[Mapping[str, Any]], Answer] = polite_answer
        self.files: dict[str, FakeFile] = {}
        self.batches: dict[str, FakeBatch] = {}  #: oldest first
        self.calls: list[Call] = []
        self._failures: dict[str, list[_Failure]] = {}
        self._hidden: set[str] = set()
        self._hide_all = False
        self._made = 0

    # -- controls --------------------------------------------------------------------------------------------------

    def fail_next(self, method: str, error: BaseException, *, times: int = 1, processed: bool = False) -> None:
        """Let the next calls of a method raise; ``processed``: the call has its effect first, its answer is lost."""
        if not callable(getattr(type(self), method, None)):
            raise ValueError(f"FakeOpenAI has no method {method!r}")
        self._failures.setdefault(method, []).append(_Failure(error, times, processed))

    def hide_from_list(self, batch: str | bool = True) -> None:
        """Hide one batch (or, with True, all, also later ones) from the list; False shows all again."""
        if isinstance(batch, str):
            self._hidden.add(batch)
            return
        self._hide_all = batch
        if not batch:
            self._hidden.clear()

    def finish(
        self,
        batch_id: str,
        status: str = Status.COMPLETED,
        *,
        rows: Mapping[str, Answer] | None = None,
        drop: Iterable[str] = (),
        after: int | None = None,
    ) -> None:
        """End a batch. ``rows``: answers by custom_id that differ from the usual; ``drop``: ids that get no line.

        ``after``: only so many rows ran; the others stand in the error file as ``batch_expired`` or
        ``batch_cancelled``.
        """
        batch, special, dropped = self.batches[batch_id], rows or {}, set(drop)
        done: list[bytes] = []
        not_done: list[bytes] = []
        for number, request in enumerate(batch.requests):
            name = request["custom_id"]
            answer = special[name] if name in special else self.answer(request)
            if name in dropped or answer is None:
                continue
            if after is not None and number >= after:
                code = "batch_expired" if status == Status.EXPIRED else "batch_cancelled"
                not_done.append(_line(name, None, {"code": code, "message": "This request was not executed."}))
            elif isinstance(answer, str):
                not_done.append(_line(name, None, {"code": answer, "message": "This request was not executed."}))
            elif isinstance(answer, int):
                error = {"error": {"message": f"refused with {answer}", "type": "invalid_request_error", "code": None}}
                not_done.append(_line(name, {"status_code": answer, "request_id": "req_1", "body": error}, None))
            else:
                batch.ran.append(name)
                done.append(_line(name, {"status_code": 200, "request_id": "req_1", "body": answer}, None))
        batch.output_file_id = self._add_lines(f"{batch_id}_output.jsonl", done)
        batch.error_file_id = self._add_lines(f"{batch_id}_error.jsonl", not_done)
        batch.counts = Counts(total=len(batch.requests), completed=len(done), failed=len(not_done))
        batch.status, batch.finished_at = status, self.clock()

    def expire(self, batch_id: str, *, after: int = 0) -> None:
        """End a batch as expired, with its first ``after`` rows done."""
        self.finish(batch_id, Status.EXPIRED, after=after)

    def fail(self, batch_id: str, errors: Iterable[BatchError | Mapping[str, Any]]) -> None:
        """End a batch as refused by the provider."""
        batch = self.batches[batch_id]
        batch.status, batch.finished_at = Status.FAILED, self.clock()
        batch.errors = [error if isinstance(error, BatchError) else BatchError(**error) for error in errors]

    @property
    def billed(self) -> Counter[str]:
        """How often each custom_id was paid for, or will be: rows of batches that still run count, too."""
        total: Counter[str] = Counter()
        for batch in self.batches.values():
            if batch.is_final:
                total.update(batch.ran)
            elif batch.status != "cancelling":
                total.update(request["custom_id"] for request in batch.requests)
        return total

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(call.method == method for call in self.calls)

    # -- what Api does ---------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        return f"key of {self.project or 'a project'}"

    def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str:
        def effect() -> str:
            blocks = []
            while block := handle.read(1 << 16):
                check()
                blocks.append(block)
            return self._add(name, b"".join(blocks), purpose="batch")

        return self._called("upload", name, effect)

    def file_bytes(self, file_id: str) -> int | None:
        try:
            return self._called("file_bytes", file_id, lambda: len(self._file(file_id).data))
        except Refused:
            return None

    def file_status(self, file_id: str) -> str | None:
        return self._called("file_status", file_id, lambda: self._file(file_id).status)

    def download(self, file_id: str, sink: BinaryIO | Resumable, check: Callable[[], None]) -> int:
        def effect() -> int:
            data = self._file(file_id).data
            have = 0
            if isinstance(sink, Resumable) and 0 < sink.have < len(data):
                have = sink.have
                sink.resume()
            check()
            sink.write(data[have:])
            return len(data)

        return self._called("download", file_id, effect)

    def file_name(self, file_id: str) -> str | None:
        return self._called("file_name", file_id, lambda: self._file(file_id).name)

    def delete_file(self, file_id: str) -> None:
        def effect() -> None:
            self._file(file_id)
            del self.files[file_id]

        self._called("delete_file", file_id, effect)

    def iter_files(self, since: float) -> Iterator[StoredFile]:
        newest = self._called("iter_files", "", lambda: list(reversed(self.files.items())))
        shown = [(file_id, file) for file_id, file in newest if (file.purpose, file.project) == ("batch", self.project)]
        for start in range(0, len(shown), _PAGE):
            page = shown[start : start + _PAGE]
            for file_id, file in page:
                yield StoredFile(id=file_id, name=file.name, bytes=len(file.data), created_at=file.created_at)
            if page[-1][1].created_at < since:
                return

    def create_batch(
        self,
        *,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        metadata: dict[str, str],
        extra: dict[str, Any],
    ) -> Batch:
        def effect() -> Batch:
            file = self.files.get(input_file_id)
            if file is None or file.project != self.project:
                raise Unavailable(f"Cannot find file {input_file_id}.", code=FILE_NOT_FOUND, status=400)
            if file.status != "processed":
                raise Refused(f"File {input_file_id} is not in the state processed.", code="http_400", status=400)
            batch = FakeBatch(
                id=f"batch_{len(self.batches) + 1:04d}",
                input_file_id=input_file_id,
                requests=[orjson.loads(line) for line in file.data.splitlines() if line.strip()],
                metadata=dict(metadata),
                arguments={"endpoint": endpoint, "completion_window": completion_window, **extra},
                created_at=self.clock(),
                project=self.project,
            )
            self.batches[batch.id] = batch
            return self._as_batch(batch)

        return self._called("create_batch", input_file_id, effect)

    def retrieve(self, batch_id: str) -> Batch:
        def effect() -> Batch:
            batch = self._batch(batch_id)
            if self.autofinish:
                self._move_on(batch)
            return self._as_batch(batch)

        return self._called("retrieve", batch_id, effect)

    def cancel_batch(self, batch_id: str) -> Batch:
        def effect() -> Batch:
            batch = self._batch(batch_id)
            if batch.is_final:
                message = f"Cannot cancel a batch with status '{batch.status}'."
                raise Refused(message, code="batch_not_cancellable", status=409)
            batch.status = "cancelling"
            return self._as_batch(batch)

        return self._called("cancel_batch", batch_id, effect)

    def iter_batches(self, since: float) -> Iterator[Batch]:
        newest = self._called("iter_batches", "", lambda: list(reversed(self.batches.values())))
        shown = [batch for batch in newest if self._shows(batch)]
        for start in range(0, len(shown), _PAGE):
            page = shown[start : start + _PAGE]
            for seen in map(self._as_batch, page):
                yield seen if self.list_metadata else msgspec.structs.replace(seen, metadata={})
            if page[-1].created_at < since:
                return

    def batch_page(self, after: str | None = None) -> BatchPage:
        def effect() -> BatchPage:
            shown = [batch for batch in reversed(self.batches.values()) if self._shows(batch)]
            if after is not None:
                self._batch(after)
                shown = shown[1 + [batch.id for batch in shown].index(after) :]
            if self.autofinish:
                for batch in shown[:_PAGE]:
                    self._move_on(batch)
            page = [self._as_batch(batch) for batch in shown[:_PAGE]]
            if not self.list_metadata:
                page = [msgspec.structs.replace(batch, metadata={}) for batch in page]
            return BatchPage(batches=page, more=len(shown) > _PAGE)

        return self._called("batch_page", after or "", effect)

    def ping(self) -> None:
        self._called("ping", "", lambda: None)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _called(self, method: str, argument: str, effect: Callable[[], T]) -> T:
        self.calls.append(Call(method, argument))
        failures = self._failures.get(method, [])
        if not failures:
            return effect()
        failure = failures[0]
        failure.left -= 1
        if failure.left <= 0:
            failures.pop(0)
        if failure.processed:
            effect()
        raise failure.error

    def _shows(self, batch: FakeBatch) -> bool:
        return batch.project == self.project and not self._hide_all and batch.id not in self._hidden

    def _file(self, file_id: str) -> FakeFile:
        try:
            file = self.files[file_id]
        except KeyError:
            raise Gone(f"No such File object: {file_id}", status=404) from None
        if file.project != self.project:
            raise Gone(f"No such File object: {file_id}", status=404)
        return file

    def _batch(self, batch_id: str) -> FakeBatch:
        try:
            batch = self.batches[batch_id]
        except KeyError:
            raise Gone(f"No batch found with id '{batch_id}'.", status=404) from None
        if batch.project != self.project:
            raise Gone(f"No batch found with id '{batch_id}'.", status=404)
        return batch

    def _add(self, name: str, data: bytes, purpose: str = "batch_output") -> str:
        self._made += 1
        file_id = f"file-{self._made:04d}"
        self.files[file_id] = FakeFile(name, data, purpose, self.clock(), project=self.project)
        return file_id

    def _add_lines(self, name: str, lines: list[bytes]) -> str | None:
        return self._add(name, b"".join(reversed(lines))) if lines else None

    def _move_on(self, batch: FakeBatch) -> None:
        if batch.status == "validating":
            batch.status, batch.in_progress_at = "in_progress", self.clock()
        elif batch.status == "in_progress":
            self.finish(batch.id)
        elif batch.status == "cancelling":
            self.finish(batch.id, Status.CANCELLED, after=0)

    def _as_batch(self, batch: FakeBatch) -> Batch:
        return Batch(
            id=batch.id,
            status=batch.status,
            input_file_id=f"gw-{batch.input_file_id}" if self.rewrites_files else batch.input_file_id,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
            created_at=batch.created_at,
            in_progress_at=batch.in_progress_at,
            finished_at=batch.finished_at,
            expires_at=batch.expires_at,
            counts=batch.counts,
            errors=list(batch.errors),
            metadata=dict(batch.metadata) if self.echo_metadata else {},
        )


def _line(custom_id: str, response: Any, error: Any) -> bytes:
    return orjson.dumps({"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}) + b"\n"
