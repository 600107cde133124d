"""Who paid for what: one entry per row that was run, in SQLite so that memory stays flat."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    batch_id TEXT NOT NULL, position INTEGER NOT NULL, job TEXT NOT NULL, custom_id TEXT NOT NULL,
    digest TEXT NOT NULL, status_code INTEGER, billed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    PRIMARY KEY (batch_id, position)
) WITHOUT ROWID
"""

# A row is paid for twice if the same request of a job is. Without a job two users may share a custom_id by chance.
_TWICE = """
SELECT job, custom_id, SUM(billed), GROUP_CONCAT(batch_id) FROM rows WHERE billed > 0
GROUP BY job, custom_id, digest HAVING SUM(billed) > 1
ORDER BY job, custom_id
"""
# Another request of the same row of a job: it was asked again, on purpose or not.
_AGAIN = """
SELECT job, custom_id, SUM(billed), GROUP_CONCAT(batch_id) FROM rows WHERE billed > 0 AND job != ''
GROUP BY job, custom_id HAVING COUNT(DISTINCT digest) > 1
ORDER BY job, custom_id
"""


@dataclass(frozen=True)
class LedgerRow:
    """One run of one row. `billed` is 1 if it was paid for."""

    batch_id: str
    position: int  #: in the order in which the batch ran its rows
    job: str  #: `metadata["batchpipe_job"]`, else ""
    custom_id: str
    digest: str  #: of the input line
    status_code: int | None
    billed: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class BilledTwice:
    """A row that was paid for more than once."""

    job: str
    custom_id: str
    times: int
    batch_ids: tuple[str, ...]


class Ledger:
    """All rows that were run, kept in `ledger.sqlite3` of the data folder."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(_SCHEMA)

    def add(self, rows: Iterable[LedgerRow]) -> None:
        """Note rows that were run. The same place of the same batch counts once, also after a restart."""
        values = [astuple(row) for row in rows]
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO rows VALUES (?,?,?,?,?,?,?,?,?)", values)
            self._db.execute("COMMIT")

    def rows(self, batch_id: str | None = None) -> list[LedgerRow]:
        """All entries, or those of one batch, in the order in which they ran."""
        where, args = ("WHERE batch_id = ?", (batch_id,)) if batch_id else ("", ())
        found = self._query(f"SELECT * FROM rows {where} ORDER BY batch_id, position", args)
        return [LedgerRow(*values) for values in found]

    @property
    def billed(self) -> dict[str, int]:
        """How often each custom_id was paid for, over all jobs."""
        return dict(self._query("SELECT custom_id, SUM(billed) FROM rows GROUP BY custom_id HAVING SUM(billed) > 0"))

    @property
    def billed_by_job(self) -> dict[tuple[str, str], int]:
        """How often each (job, custom_id) was paid for; job is "" for batches without `batchpipe_job`."""
        found = self._query("SELECT job, custom_id, SUM(billed) FROM rows WHERE billed > 0 GROUP BY job, custom_id")
        return {(job, custom_id): times for job, custom_id, times in found}

    @property
    def total(self) -> int:
        """How many rows were paid for, each time counted."""
        found: int = self._query("SELECT COALESCE(SUM(billed), 0) FROM rows")[0][0]
        return found

    def billed_twice(self) -> list[BilledTwice]:
        """Requests that were paid for more than once. Must be empty."""
        return self._more_than_once(_TWICE)

    def asked_again(self) -> list[BilledTwice]:
        """Rows of a job that were paid for with several requests, as one whose answer was not what was asked for is.
        Must be empty where answers are not checked.
        """
        return self._more_than_once(_AGAIN)

    def _more_than_once(self, query: str) -> list[BilledTwice]:
        found = self._query(query)
        return [BilledTwice(job, row, times, tuple(batches.split(","))) for job, row, times, batches in found]

    def clear(self) -> None:
        """Remove all entries."""
        self._query("DELETE FROM rows")

    def close(self) -> None:
        """Close the file; no queries are possible after this."""
        with self._lock:
            self._db.close()

    def _query(self, sql: str, args: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, args).fetchall()
