"""What SQLite's errors mean for an exchange that waits to be stored.

Source: sqlite.org/rescode.html.
"""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from pathlib import Path

from gateway.errors import StoreError


class Fault(StrEnum):
    """Why something is not stored."""

    BUSY = "busy"
    """Another process holds the file; later it may be free."""
    FULL = "full"
    """No room on the disk, or under the store's own cap."""
    UNAVAILABLE = "unavailable"
    """Read-only, gone, damaged, or the disk failed to write or to sync."""
    UNFIT = "unfit"
    """This row cannot be stored, now or later; its neighbours can."""


_BY_CODE = {
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_CONSTRAINT: Fault.UNFIT,
    sqlite3.SQLITE_MISMATCH: Fault.UNFIT,
    sqlite3.SQLITE_TOOBIG: Fault.UNFIT,
}


class WriteError(StoreError):
    """Nothing of a transaction is stored; ``fault`` says why."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


def write_error(path: Path, error: Exception) -> WriteError:
    """What an exception of a write means."""
    if not isinstance(error, sqlite3.Error):
        return WriteError(f"{path}: {error}", Fault.UNFIT)
    # The low byte is the primary code; sqlite3's own errors (a wrong type bound) have none.
    code = getattr(error, "sqlite_errorcode", None)
    fault = Fault.UNFIT if code is None else _BY_CODE.get(code & 0xFF, Fault.UNAVAILABLE)
    return WriteError(f"{path}: {error}", fault)
