"""Exchanges in SQLite: WAL and ``synchronous=FULL``, so that a commit is on disk.

Source: sqlite.org/pragma.html#pragma_synchronous.

One connection per object, which threads use in turns. Exchanges are written by the capture thread
only; readers open their own.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

from gateway.errors import StoreError
from gateway.store.database import Database, SqliteDatabase
from gateway.store.faults import WriteError, write_error
from gateway.store.records import Exchange
from gateway.store.repository import Repository
from gateway.store.rows import (
    ATTEMPT_COLUMNS,
    COLUMNS,
    DRAW_COLUMNS,
    attempt_values,
    draw_values,
    exchange_values,
)
from gateway.store.schema import migrate

_DROP_BODIES = """
UPDATE exchanges SET request = x'7b7d', answer = NULL, prefix = NULL, bodies = 0 WHERE id IN (
    SELECT id FROM exchanges WHERE served_by = 'student' AND bodies = 1
        AND NOT EXISTS (SELECT 1 FROM draws WHERE exchange_id = exchanges.id)
    ORDER BY created_at LIMIT ?)
"""
BUSY_S = 10.0
"""How long a statement waits for other writers."""
_ROWS = 32
"""At most in one statement: each statement gives the interpreter's lock away, and waits for it."""
_STATEMENTS = 4 * _ROWS + 128
"""That a connection keeps: for every number of rows of four tables, and the others."""


@dataclass(frozen=True, slots=True)
class _Insert:
    """Rows of one table, many to a statement."""

    table: str
    columns: tuple[str, ...]
    known: str
    """What happens to those that are there already."""

    def run(self, db: Database, rows: Sequence[Sequence[Any]]) -> int:
        """Insert; returns how many rows were new, or changed."""
        changed = 0
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            sql = _insert_sql(self.table, self.columns, self.known, len(part))
            changed += db.execute(sql, list(chain.from_iterable(part))).rowcount
        return changed


@functools.cache
def _insert_sql(table: str, columns: tuple[str, ...], known: str, count: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    rows = ", ".join([row] * count)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows} ON CONFLICT {known}"


_LEFT = "DO NOTHING"
_EXCHANGES = _Insert("exchanges", COLUMNS, _LEFT)
_ATTEMPTS = _Insert("attempts", ("exchange_id", "seq", *ATTEMPT_COLUMNS), _LEFT)
_DRAWS = _Insert("draws", DRAW_COLUMNS, _LEFT)
_TOTALS = _Insert(
    "totals", ("metric", "labels", "value"),
    "(metric, labels) DO UPDATE SET value = value + excluded.value",
)  # fmt: skip


class SqliteStore(Repository):
    """The repository over one SQLite file."""

    errors = (sqlite3.Error, TypeError, ValueError)

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(SqliteDatabase(connection), str(path))
        self.path = path
        self._inode = path.stat().st_ino

    @classmethod
    def open(cls, path: Path, busy_s: float = BUSY_S) -> Self:
        """Open for writing; creates file and schema. A statement waits ``busy_s`` for others.

        Raises:
            StoreError: the file cannot be opened, or a newer version wrote it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                db = stack.enter_context(contextlib.closing(_connect(path, busy_s)))
                _into_wal(db, busy_s)
                db.execute("PRAGMA synchronous=FULL")
                db.execute("PRAGMA foreign_keys=ON")
                migrate(db, path)
                stack.pop_all()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        return cls(db, path)

    def wait_at_most(self, seconds: float) -> None:
        """How long a statement waits for another process's lock from now on."""
        self._db.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}")

    @classmethod
    def read_only(cls, path: Path) -> Self:
        """Open for reading beside a running gateway.

        Raises:
            StoreError: there is no such store, or it cannot be read.
        """
        if not path.is_file():
            raise StoreError(f"{path}: no such store; has the gateway run with this configuration?")
        try:
            db = _connect(path, BUSY_S)
            db.execute("PRAGMA query_only=ON")
            db.execute("SELECT 1 FROM exchanges LIMIT 1")
        except sqlite3.Error as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        return cls(db, path)

    def begin(self) -> None:
        """Open a transaction, alone among writers."""
        self._db.execute("BEGIN IMMEDIATE")

    def error(self, error: Exception) -> WriteError:
        """What an exception of the database means."""
        return write_error(self.path, error)

    def put(
        self, exchanges: Iterable[Exchange], totals: Iterable[tuple[str, str, float]] = ()
    ) -> int:
        """Commit exchanges in one transaction; ids already there are left as they are. ``totals``
        (metric, labels, amount) are added to the counters of ``totals()`` in the same.

        Returns:
            How many were new.

        Raises:
            WriteError: nothing of the batch is stored.
        """
        rows = list(exchanges)
        with self.transaction():
            _TOTALS.run(self._db, list(totals))
            new = _EXCHANGES.run(self._db, [exchange_values(e) for e in rows])
            # Of one that was there already, attempts and draw are there too.
            _ATTEMPTS.run(
                self._db,
                [attempt_values(e.id, seq, a) for e in rows for seq, a in enumerate(e.attempts)],
            )
            _DRAWS.run(self._db, [draw_values(e, e.draw) for e in rows if e.draw is not None])
            return new

    def totals(self) -> list[tuple[str, str, float]]:
        """What was counted over the lives of all processes: metric, labels (JSON), value.

        Raises:
            WriteError: it cannot be read.
        """
        with self._written():
            rows = self._db.execute("SELECT metric, labels, value FROM totals").fetchall()
        return [(str(metric), str(labels), float(value)) for metric, labels, value in rows]

    def delete(self, ids: Sequence[str]) -> None:
        """Drop exchanges that are kept elsewhere by now.

        Raises:
            WriteError: all of them are still there.
        """
        marks = ", ".join("?" * len(ids))
        with self.transaction():
            for table in ("draws", "attempts"):
                self._db.execute(f"DELETE FROM {table} WHERE exchange_id IN ({marks})", ids)
            self._db.execute(f"DELETE FROM exchanges WHERE id IN ({marks})", ids)

    def oldest_rows(self, limit: int) -> list[Exchange]:
        """The exchanges that were committed first, in that order."""
        sql = "SELECT id FROM exchanges ORDER BY rowid LIMIT ?"
        ids = [row[0] for row in self._db.execute(sql, (limit,))]
        return self.of_ids(ids)

    def backlog(self) -> int:
        """About how many exchanges there are, at no cost: what is between the first row and the
        last."""
        sql = "SELECT coalesce(max(rowid) - min(rowid) + 1, 0) FROM exchanges"
        return int(self._db.execute(sql).fetchone()[0])

    def used_bytes(self) -> int:
        """What rows take of the file; pages that were freed are room.

        Raises:
            WriteError: the file cannot be read.
        """
        with self._written():
            pages, free, size = (
                self._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    def drop_bodies(self, limit: int) -> int:
        """Forget request and answer of the oldest exchanges that a student served undrawn; their
        verdicts and scores stay.

        Returns:
            How many had bodies to drop.

        Raises:
            WriteError: nothing was dropped.
        """
        with self._written():
            return self._db.execute(_DROP_BODIES, (limit,)).rowcount

    def moved(self) -> bool:
        """Whether the path leads to another file, or none: what is written then is lost."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def writable(self) -> bool:
        """Whether a write transaction can be opened now."""
        with self._db.turn:
            try:
                self.begin()
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                self.roll_back()
                return False
        return True


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=busy_s,
        cached_statements=_STATEMENTS,
    )  # fmt: skip


def _into_wal(db: sqlite3.Connection, busy_s: float) -> None:
    """Several who open a new file at once each want it alone for this, and SQLite refuses all but
    one of them at once, where it would have to wait for one that waits for it.

    Source: sqlite.org/c3ref/busy_handler.html.
    """
    until = time.monotonic() + busy_s
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
