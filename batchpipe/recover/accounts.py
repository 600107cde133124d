"""What an account's lists tell about our batches and files: which job and shard each belongs to."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from batchpipe.config.account import Account
from batchpipe.errors import NO_ROUTE, BatchpipeError, Refused, Unavailable
from batchpipe.model.provider import Batch, ProviderReads, StoredFile
from batchpipe.model.records import UPLOAD_NAME

_KEY = re.compile(r"(\w+):(\d+):(\d+)")


class Tag(NamedTuple):
    """The job, shard and try that a batch or file belongs to."""

    job: str
    shard: int
    try_: int


class AccountView:
    """The batches and files of one account since a moment, with their tags.

    ``echoes``: the account's settings do not say that the metadata of its list are unreliable.
    """

    def __init__(self, name: str, batches: list[Batch], files: list[StoredFile] | None, *, echoes: bool = True) -> None:
        self.name = name
        self._echoes = echoes
        self.batches = {batch.id: batch for batch in batches}
        self.files = files  #: None: the provider cannot list them
        self.file_tags = {file.id: tag for file in files or [] if (tag := _tag_of_file(file)) is not None}
        self.tags = {batch.id: tag for batch in batches if (tag := self._tag_of_batch(batch)) is not None}
        self._batches_of: dict[tuple[str, int], list[Batch]] = defaultdict(list)
        for batch_id, tag in self.tags.items():
            self._batches_of[tag.job, tag.shard].append(self.batches[batch_id])
        self._files_of: dict[tuple[str, int], list[StoredFile]] = defaultdict(list)
        for file in files or []:
            if (found := self.file_tags.get(file.id)) is not None:
                self._files_of[found.job, found.shard].append(file)

    @property
    def lacks_metadata(self) -> bool:
        """Whether nothing has shown that this provider's list includes metadata."""
        return not self._echoes or not any(batch.metadata for batch in self.batches.values())

    @property
    def names_files(self) -> bool:
        return any(file.name for file in self.files or [])

    def batches_of(self, job: str, shard: int) -> list[Batch]:
        """Newest first."""
        return self._batches_of.get((job, shard), [])

    def files_of(self, job: str, shard: int) -> list[StoredFile]:
        """Newest first."""
        return self._files_of.get((job, shard), [])

    def has_any_of(self, job: str) -> int:
        """How many batches of a job there are."""
        return sum(tag.job == job for tag in self.tags.values())

    def knows_nothing_of(self, job: str) -> bool:
        """Whether it is certain that nothing of a job was sent to this account since the view's moment."""
        if self.batches and self.lacks_metadata and not self.names_files:
            return False
        return not self.has_any_of(job) and not any(tag.job == job for tag in self.file_tags.values())

    def _tag_of_batch(self, batch: Batch) -> Tag | None:
        key = batch.metadata.get("batchpipe_key") if self._echoes else None
        if key is None:
            return self.file_tags.get(batch.input_file_id or "")
        found = _KEY.fullmatch(key)
        return Tag(found[1], int(found[2]), int(found[3])) if found else None


def look_into(api: ProviderReads, name: str, account: Account, since: float) -> AccountView:
    """Read an account's lists. Raises an error that ``cannot_list`` knows if it has none of batches; else
    Unavailable, Paused.
    """
    if not account.lists_batches:
        raise Refused("the account's LISTS_BATCHES says so", code="no_list")
    batches = list(api.iter_batches(since))
    files: list[StoredFile] | None
    try:
        files = list(api.iter_files(since))
    except BatchpipeError as error:
        if not cannot_list(error):
            raise
        files = None
    return AccountView(name, batches, files, echoes=account.echoes_metadata)


def cannot_list(error: Exception) -> bool:
    """Whether the provider has no such list; all other errors may pass."""
    return isinstance(error, Refused) or (
        isinstance(error, Unavailable) and (error.code == NO_ROUTE or error.status == 501)
    )


def _tag_of_file(file: StoredFile) -> Tag | None:
    found = UPLOAD_NAME.fullmatch(file.name or "")
    return Tag(found[1], int(found[2]), int(found[3])) if found else None
