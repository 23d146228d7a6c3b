"""What a store knows of its connection, and SQLite's."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

_FETCH = 200


class Rows(Protocol):
    """What a statement gives."""

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All that are left."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Row by row."""
        ...


class Database(Protocol):
    """A connection to SQLite, or one to Postgres that takes ``?`` for parameters too. Threads may
    share it: each statement waits for its turn."""

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """Held over several statements, no other thread's comes between them. Reentrant."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Rows:
        """Run one statement."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement for each of several rows."""
        ...

    def stream(self, sql: str, parameters: Sequence[Any], /) -> Iterator[Any]:
        """Rows of a query, a few hundred at a time: there may be very many."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class SqliteDatabase:
    """A connection to a SQLite file.

    SQLite has a mutex of its own for threads, but ``sqlite3`` takes it, to bind parameters, while
    it holds the interpreter's lock. A thread that waits for another connection's write holds the
    mutex; a second one on the same connection then stops every thread of the process, the one that
    was about to commit as well, until the busy timeout is over.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.turn = threading.RLock()

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        return self._connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run one statement, to its last row.

        Raises:
            sqlite3.Error: it failed.
        """
        with self.turn:
            cursor = self._connection.execute(sql, parameters)
            return cursor if cursor.description is None else _Fetched(cursor)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement for each of several rows.

        Raises:
            sqlite3.Error: one failed.
        """
        with self.turn:
            return self._connection.executemany(sql, parameters)

    def stream(self, sql: str, parameters: Sequence[Any], /) -> Iterator[Any]:
        """Rows of a query, a few hundred at a time."""
        with self.turn:
            cursor = self._connection.execute(sql, parameters)
            rows = cursor.fetchmany(_FETCH)
        while rows:
            yield from rows
            with self.turn:
                rows = cursor.fetchmany(_FETCH)

    def close(self) -> None:
        """End the connection."""
        with self.turn:
            self._connection.close()


class _Fetched:
    """All rows of a statement, taken while no other thread used the connection."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        rows = cursor.fetchall()
        self.rowcount = cursor.rowcount
        self._rows: Iterator[Any] = iter(rows)

    def fetchone(self) -> Any:
        """The next row, or None."""
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        """All that are left."""
        return list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows
