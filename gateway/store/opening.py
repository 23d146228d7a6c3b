"""Before a store is opened: a damaged file must not keep the gateway from serving.

Called once per start, by whoever starts first; workers that are replaced later find the file that
their siblings have open.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import StoreError
from gateway.store.sqlite import SqliteStore

CHECKED_BYTES = 256 << 20
"""Larger files are only opened and asked for their tables: a full check reads all of the file, and
a restart should serve within seconds."""
RESERVE_BYTES = 1 << 20
_SUFFIXES = ("", "-wal", "-shm")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


def move_damaged(path: Path, now: float) -> Path | None:
    """Put a damaged file aside under a new name, with its log, so that a new one can be begun.

    Returns:
        The new name; None where the file is sound, or not there.

    Raises:
        StoreError: the file cannot be looked at, or not be moved.
    """
    if not path.is_file():
        return None
    try:
        with _alone(path):
            if not damaged(path):
                return None
            return moved_aside(path, "damaged", now)
    except OSError as error:
        raise StoreError(f"{path}: cannot be looked at: {error}") from error


def moved_aside(path: Path, why: str, now: float) -> Path:
    """Give a store, with its log, the name ``….WHY-TIME``.

    Raises:
        OSError: it is still there, or a part of it.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    aside = path.with_name(f"{path.name}.{why}-{stamp}")
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def ensure_room(path: Path) -> bool:
    """Make sure that a start does not fail for want of the few pages that SQLite's log begins
    with: a file of that size is kept in reserve, and given up when the disk is full.

    Returns:
        Whether the reserve had to be given up.
    """
    reserve = path.with_name(path.name + ".reserve")
    try:
        SqliteStore.open(path).close()
    except StoreError:
        if not reserve.exists():
            return False  # for another reason, which whoever opens the store will hear
        reserve.unlink()
        return True
    with contextlib.suppress(OSError):
        if not reserve.exists():
            reserve.write_bytes(b"\0" * RESERVE_BYTES)
    return False


def damaged(path: Path) -> bool:
    """Whether SQLite calls the file damaged, or none of its own.

    A file that cannot be read for another reason (locked, no permission) is not called damaged.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
            if db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
                return False
            db.execute("SELECT max(rowid) FROM exchanges").fetchone()
            if path.stat().st_size > CHECKED_BYTES:
                return False
            return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.DatabaseError as error:
        return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF in _DAMAGED


def set_aside(path: Path) -> list[Path]:
    """Damaged files of former starts that still lie beside the store."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(p for p in found if not p.name.endswith(("-wal", "-shm")))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two gateways that start over one file must not both move it."""
    with path.with_name(path.name + ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
