"""Inputs that are tables: rows with named columns, whatever the format of their files."""

from __future__ import annotations

from batchpipe.storage.tables.opening import open_tables
from batchpipe.storage.tables.rows import Reading, Row, Table

__all__ = ["Reading", "Row", "Table", "open_tables"]
