"""Fetches the files of one shard. What came before a connection broke is kept, for this turn and the next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from hashlib import blake2b
from types import TracebackType
from typing import Literal, Self

from batchpipe.errors import Gone, LeaseLost, StorageTrouble, Unavailable
from batchpipe.model.provider import ProviderReads
from batchpipe.storage import Folder, Partial, Scratch, forget, partial, prune

#: Tries to fetch one file in a turn without progress. A turn that fails must look at the other file again.
FETCHES_AT_ONCE = 3
#: A try that brings at least so many new bytes counts as progress.
PROGRESS_BYTES = 1 << 18
#: How many unfinished downloads one host keeps outside of workspaces.
MOST_KEPT = 64
#: The longest file that is accepted if the provider does not tell its size.
MOST_BYTES = 64 << 30
#: The longest file of a small shard that is fetched without asking how long it is.
UNSIZED_BYTES = 16 << 20

#: How much of a file came: all of it, less than its size says, or unknown, because its size is not told.
Extent = Literal["whole", "short", "unknown"]


class Unsized(Unavailable):
    """A file is longer than one that is fetched without asking how long it is: ask."""


class Fetcher:
    """Fetches the files of a shard, which exist as long as the block.

    If the block ends because a transfer failed, what has come stays in a local folder; otherwise it is removed.
    """

    def __init__(
        self,
        api: ProviderReads,
        workspace: Folder,
        name: str,
        check: Callable[[], None],
        *,
        elsewhere: Folder | None = None,
        sized: bool = True,
    ) -> None:
        """``name``: unique to the shard. ``elsewhere``: a local folder to use instead of a remote workspace. ``sized``:
        the provider is asked how long each file is.
        """
        self._api, self._check, self._sized = api, check, sized
        self._folder = workspace.child("downloads") if workspace.is_local else elsewhere
        self._shared = not workspace.is_local
        self._name = name
        self._names: list[str] = []
        self._files: list[Partial] = []
        self._broken = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._folder is not None and self._shared:
            prune(self._folder, MOST_KEPT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._keeps(error) and self._folder is not None:
                for name in self._names:
                    forget(self._folder, name)  # before its lock ends: the next turn makes a new one
        finally:
            self._stack.close()

    def _keeps(self, error: BaseException | None) -> bool:
        """Keep what has come for the next turn, if that can use it: not if the bytes came whole but make no sense, as
        they are fetched again, and not on a full disk, which needs the room.
        """
        lost = isinstance(error, LeaseLost) or not isinstance(error, Exception | None)
        if isinstance(error, StorageTrouble) or not (lost or (error is not None and self._broken)):
            return False
        try:
            for file in self._files:
                file.save()
        except StorageTrouble:
            return False
        return True

    def fetch(self, file_id: str) -> tuple[Scratch, Extent]:
        """Returns a file, and how much of it came. Raises Gone; Unavailable if it cannot be fetched."""
        name = f"{self._name}-{blake2b(file_id.encode(), digest_size=8).hexdigest()}.part"
        file = self._stack.enter_context(partial(self._folder, name))
        self._names.append(name)
        self._files.append(file)
        try:
            return file.scratch, self._tried(file_id, file)
        except Gone:
            raise
        except BaseException:
            self._broken = True
            raise

    def _tried(self, file_id: str, file: Partial) -> Extent:
        left = FETCHES_AT_ONCE
        while True:
            before = file.length
            try:
                return self._fetch(file_id, file, last=left == 1)
            except Unavailable as error:
                if not self._sized and file.length > UNSIZED_BYTES - PROGRESS_BYTES:
                    raise Unsized(error.message) from error
                got_on = file.length - before >= PROGRESS_BYTES
                left = FETCHES_AT_ONCE if got_on else left - 1
                if not left or error.after is not None:
                    raise self._said(error, file) from error

    def _fetch(self, file_id: str, file: Partial, *, last: bool) -> Extent:
        """Returns how much of the file came. Raises Gone; Unavailable if its length differs from the reported one.

        A file that differs again and again is accepted: some providers count characters, not bytes, and some lag.
        """
        try:
            size = self._api.file_bytes(file_id) if self._sized else None
        except Gone:
            size = None  # paid rows are lost only if the content is gone too
        longest = MOST_BYTES if self._sized else UNSIZED_BYTES
        file.next_try(most=4 * size + (1 << 20) if size else longest, size=size)
        if not size or file.have != size:
            self._api.download(file_id, file, self._check)
        got = file.length
        # Some report 0 for a file that they have not measured; a file cannot be cut shorter than that.
        if size and got != size and not last:
            raise Unavailable(f"the downloaded file is cut short: {file_id} has {got} of {size} bytes")
        if size and got < size:
            return "short"
        return "whole" if got == size else "unknown"

    def _said(self, error: Unavailable, file: Partial) -> Unavailable:
        if file.restarts > 1:
            more = (
                "; the provider does not continue a download (Range), so it starts over each time: the line must hold "
                "for a whole file; smaller shards (MAX_ROWS, MAX_BYTES) make smaller files"
            )
        elif file.length:
            more = "; what has come is kept, and the next try goes on there"
        else:
            return error
        return Unavailable(f"{error}{more}", code=error.code, after=error.after, status=error.status)
