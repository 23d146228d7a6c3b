"""A connection of its own to the store, for tables that several processes read and write."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gateway.store.database import Database, Rows
from gateway.store.repository import Repository


class _Answer:
    """What a statement gave, fetched while no other thread used the connection."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.rowcount = cursor.rowcount
        self._rows: Iterator[Any] = iter(cursor.fetchall())

    def fetchone(self) -> Any:
        """The next row, or None."""
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        """All that are left."""
        return list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows


class _OneAtATime:
    """A SQLite connection that threads use in turns.

    SQLite has a mutex for that itself, but ``sqlite3`` takes it, to bind parameters, while it holds
    the interpreter's lock. A thread that waits for another process's or thread's write holds the
    mutex; a second one on the same connection then stops every thread of the process, the one that
    was about to commit as well, until the busy timeout is over.
    """

    def __init__(self, connection: sqlite3.Connection, turn: threading.RLock) -> None:
        self._connection = connection
        self._turn = turn

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run one statement."""
        with self._turn:
            return _Answer(self._connection.execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement for each of several rows."""
        with self._turn:
            return _Answer(self._connection.executemany(sql, parameters))

    def close(self) -> None:
        """End the connection."""
        with self._turn:
            self._connection.close()


class SharedTables:
    """Some tables of a database. Several threads may share one."""

    def __init__(self, store: Repository) -> None:
        self._store = store
        self._one_at_a_time = threading.RLock()
        db = store.connection
        if isinstance(db, sqlite3.Connection):
            db = _OneAtATime(db, self._one_at_a_time)
        self.connection: Database = db
        self._db: Database = db

    def close(self) -> None:
        """Close the connection."""
        self._store.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Reads outside a transaction.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            yield
        except self._store.errors as error:
            raise self._store.error(error) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything within happens or nothing does, alone among writers.

        Raises:
            StoreError: the store cannot be read or written; nothing happened.
        """
        with self._one_at_a_time, self._store.transaction():
            yield
