"""The provider as everything above it sees it: what an account's files and batches are, and what may be asked of them.

``provider.api.Api`` does this over HTTP, ``testing.FakeOpenAI`` in memory. A step that only reads is given
``ProviderReads``; which modules may call what changes something is a table of tests/test_layers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, Protocol, runtime_checkable

import msgspec

from batchpipe.model.records import BatchError, Counts

#: The provider's clock and Redis' may differ by so much.
CLOCK_SLACK_SECONDS = 300.0
#: What is beyond is no time in seconds since 1970.
MOST_TIME = 1e11


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the provider shows it, made safe: any field except the id may be absent."""

    id: str
    status: str | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: float | None = None
    in_progress_at: float | None = None
    finished_at: float | None = None  #: it was completed, or expired, failed or was cancelled
    expires_at: float | None = None
    counts: Counts = Counts()
    errors: list[BatchError] = []
    metadata: dict[str, str] = {}
    usage: dict[str, int] = {}

    @property
    def times(self) -> dict[str, float]:
        """Of its times those that a shard's record keeps, and that the provider shows: the changes to record."""
        shown = {
            "in_progress_at": self.in_progress_at,
            "finished_at": self.finished_at,
            "expires_at": self.expires_at,
        }
        return {name: at for name, at in shown.items() if at is not None and 0.0 < at < MOST_TIME}


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the account's batches; a list is newest first."""

    batches: list[Batch]
    more: bool  #: the list goes on after the last one


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file in the provider's list: any field except the id may be absent."""

    id: str
    name: str | None = None
    bytes: int | None = None
    created_at: float | None = None


@runtime_checkable
class Resumable(Protocol):
    """The target of a download that an earlier try may have begun. Each try starts over, unless it is resumed."""

    @property
    def have(self) -> int:
        """The number of bytes from earlier tries."""

    @property
    def etag(self) -> str | None:
        """The provider's ETag of their version of the file, if it sent one."""

    def resume(self) -> None:
        """The next bytes continue those that are there."""

    def begin(self, etag: str | None, *, resumable: bool) -> None:
        """The next bytes are the whole file, of this version; ``resumable``: they are counted as the file's."""

    def write(self, data: bytes) -> object: ...


class ProviderReads(Protocol):
    """The calls that change nothing and cost nothing. All raise Unavailable and Paused."""

    @property
    def identity(self) -> str:
        """The same only for the same key at the same server, without telling anything of the key; "": not known."""

    def file_bytes(self, file_id: str) -> int | None:
        """The size that the provider reports, None if it reports none."""

    def file_status(self, file_id: str) -> str | None:
        """The status of a file (``processed``, ``pending``), None if it has none. Raises Gone."""

    def file_name(self, file_id: str) -> str | None:
        """The name under which a file was uploaded, None if the provider does not say. Raises Refused."""

    def download(self, file_id: str, sink: BinaryIO | Resumable, check: Callable[[], None]) -> int:
        """Stream a file into ``sink`` and return the number of bytes, including those that a resumable one had.

        Raises Gone, Refused, and what ``check`` raises, which is called as bytes come.
        """

    def retrieve(self, batch_id: str) -> Batch:
        """Raises Gone, Refused."""

    def iter_files(self, since: float) -> Iterator[StoredFile]:
        """The account's files for batches, newest first, until one is older than ``since`` (the provider's clock).

        Raises Gone or Refused if the provider cannot list.
        """

    def iter_batches(self, since: float) -> Iterator[Batch]:
        """The account's batches, in the same way."""

    def batch_page(self, after: str | None = None) -> BatchPage:
        """Up to a hundred of the account's batches: the newest, or those that come ``after`` the batch with this id.

        One call. Raises Gone or Refused if the provider cannot list, or does not know that batch.
        """


class Provider(ProviderReads, Protocol):
    """The Files and Batches of one account. All calls raise Unavailable and Paused."""

    def upload(self, handle: IO[bytes], name: str, check: Callable[[], None]) -> str:
        """Stream a file to the provider and return its id. Raises Refused, and what ``check`` raises."""

    def create_batch(
        self,
        *,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        metadata: dict[str, str],
        extra: dict[str, Any],
    ) -> Batch:
        """The paid call: sent once. Raises AmbiguousResult unless the answer is clear, Refused.

        Each error has in ``named`` the ids of batches that the answer names; read these before any further call.
        """

    def cancel_batch(self, batch_id: str) -> Batch:
        """Raises Refused if the batch has already ended (read it again), Gone."""

    def delete_file(self, file_id: str) -> None:
        """Raises Gone, Refused."""
