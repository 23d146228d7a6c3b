"""How long exchanges stay, who is forgotten, what was exported, and who looked."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.api.request import Api
from gateway.errors import StoreError
from gateway.store.repository import Repository
from gateway.store.rows import load
from gateway.store.shared import SharedTables
from gateway.store.sqlite import SqliteStore

AT_ONCE = 200
"""Exchanges deleted in one transaction: writers get their turn in between."""
_PARTS = ("feedback", "draws", "attempts", "samples", "labels")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is needed of an exchange to find its traces elsewhere."""

    id: str
    task: str
    api: Api
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Export:
    """A file that was written from the store."""

    path: Path
    format: str
    at: float
    rows: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Somebody looked at what was captured."""

    at: float
    who: str
    what: str
    detail: Mapping[str, Any]


class Keeping(SharedTables):
    """In SQLite deletes with ``secure_delete``: freed places are overwritten with zeros.

    Source: sqlite.org/pragma.html#pragma_secure_delete.
    """

    def __init__(self, store: Repository) -> None:
        super().__init__(store)
        self._sqlite = isinstance(store, SqliteStore)
        if self._sqlite:
            store.connection.execute("PRAGMA secure_delete=ON")

    def delete_before(self, task: str, before: float) -> int:
        """Delete some of the task's exchanges that are older (Unix seconds); 0 when none is left.

        Raises:
            StoreError: nothing was deleted.
        """
        sql = f"SELECT id FROM exchanges WHERE task = ? AND created_at < ? LIMIT {AT_ONCE}"
        with self.transaction():
            ids = [row[0] for row in self._db.execute(sql, (task, before))]
            self._delete(ids)
        return len(ids)

    def asked_by(self, end_user: str) -> list[Asked]:
        """Every exchange of an end user."""
        sql = "SELECT id, task, api, request FROM exchanges WHERE end_user = ? ORDER BY id"
        return [
            Asked(id_, task, Api(api), load(request))
            for id_, task, api, request in self._db.execute(sql, (end_user,))
        ]

    def forget(self, end_user: str, found: Sequence[Asked], by: str, now: float) -> None:
        """Delete exchanges of an end user and remember that they are forgotten: sets that were
        made from them before must forget them too.

        Raises:
            StoreError: what is not deleted yet is still there; do it again.
        """
        for start in range(0, len(found), AT_ONCE):
            part = found[start : start + AT_ONCE]
            with self.transaction():
                self._db.executemany(
                    "INSERT INTO forgotten_exchanges (exchange_id, task, at) VALUES (?, ?, ?) "
                    "ON CONFLICT DO NOTHING",
                    [(asked.id, asked.task, now) for asked in part],
                )
                self._delete([asked.id for asked in part])
        with self.transaction():
            self._db.execute(
                "INSERT INTO forgotten_users (end_user, at, by, exchanges) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (end_user) DO UPDATE SET at = excluded.at, by = excluded.by, "
                "exchanges = forgotten_users.exchanges + excluded.exchanges",
                (end_user, now, by, len(found)),
            )

    def forgotten(self) -> frozenset[str]:
        """Ids of every exchange that was forgotten on an end user's behalf."""
        rows = self._db.execute("SELECT exchange_id FROM forgotten_exchanges")
        return frozenset(row[0] for row in rows)

    def scrub_files(self, vacuum: bool, patience_s: float = 20.0) -> bool:
        """Take what was deleted out of the write-ahead log, and with ``vacuum`` out of every page
        that rows were moved from. Writers wait meanwhile. In Postgres ``vacuum`` rewrites the
        tables; its own log and its backups keep what they keep.

        Returns:
            False where readers kept the log from being emptied: do it again later.

        Raises:
            StoreError: another process held the file all the while.
        """
        until = time.monotonic() + patience_s
        if not self._sqlite:
            if vacuum:
                self._db.execute("VACUUM (FULL) exchanges, attempts, draws, feedback")
            return True
        try:
            if vacuum:
                self._db.execute("VACUUM")
            while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    return False
                time.sleep(0.1)
        except sqlite3.Error as error:
            raise StoreError(f"{self._store.name}: {error}") from error
        return True

    def add_export(self, export: Export) -> None:
        """Remember a file, so that it can forget too.

        Raises:
            StoreError: it is not remembered.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO exports (path, format, at, rows) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET format = excluded.format, at = excluded.at, "
                "rows = excluded.rows",
                (str(export.path), export.format, export.at, export.rows),
            )

    def exports(self) -> list[Export]:
        """Every file that was written from the store."""
        rows = self._db.execute("SELECT path, format, at, rows FROM exports ORDER BY at")
        return [Export(Path(path), form, at, count) for path, form, at, count in rows]

    def drop_export(self, path: Path) -> None:
        """No longer remember a file.

        Raises:
            StoreError: it still is.
        """
        with self.transaction():
            self._db.execute("DELETE FROM exports WHERE path = ?", (str(path),))

    def add_reading(self, reading: Reading) -> None:
        """Record who looked at what.

        Raises:
            StoreError: it is not recorded.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO reads (at, who, what, detail) VALUES (?, ?, ?, ?)",
                (reading.at, reading.who, reading.what, orjson.dumps(dict(reading.detail))),
            )

    def readings(self, limit: int) -> list[Reading]:
        """Who looked at what, the latest first."""
        sql = "SELECT at, who, what, detail FROM reads ORDER BY seq DESC LIMIT ?"
        return [
            Reading(at, who, what, load(detail))
            for at, who, what, detail in self._db.execute(sql, (limit,))
        ]

    def _delete(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        marks = ", ".join("?" * len(ids))
        for table in _PARTS:
            self._db.execute(f"DELETE FROM {table} WHERE exchange_id IN ({marks})", ids)
        self._db.execute(f"DELETE FROM exchanges WHERE id IN ({marks})", ids)
