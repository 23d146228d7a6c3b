"""A connection of its own to the store, for tables that several processes read and write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from gateway.store.database import Database
from gateway.store.repository import Repository


class SharedTables:
    """Some tables of a database. Several threads may share one."""

    def __init__(self, store: Repository) -> None:
        self._store = store
        self.connection: Database = store.connection
        self._db: Database = store.connection

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

    def transaction(self) -> AbstractContextManager[None]:
        """Everything within happens or nothing does, alone among writers.

        Raises:
            StoreError: the store cannot be read or written; nothing happened.
        """
        return self._store.transaction()
