"""A connection of its own to the store's file, for tables that several processes read and write."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from gateway.errors import StoreError
from gateway.store.sqlite import SqliteStore


class SharedTables:
    """Some tables of one SQLite file."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.connection = self._db = store.connection
        self._one_at_a_time = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file; creates and migrates it as ``SqliteStore.open`` does.

        Raises:
            StoreError: the file cannot be opened.
        """
        return cls(SqliteStore.open(path))

    def close(self) -> None:
        """Close the connection."""
        self._store.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything within happens or nothing does, alone among writers.

        Raises:
            StoreError: the store cannot be read or written; nothing happened.
        """
        # Several threads share the connection.
        with self._one_at_a_time:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise StoreError(f"{self._store.path}: {error}") from error
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
