"""Exchanges in SQLite: WAL and ``synchronous=FULL``, so that a commit is on disk.

Source: sqlite.org/pragma.html#pragma_synchronous.

One connection per object. Writing happens in the capture thread only; readers open their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from gateway.api.request import Api
from gateway.errors import StoreError
from gateway.store.faults import write_error
from gateway.store.records import (
    Attempt,
    Draw,
    DrawState,
    Exchange,
    Filter,
    PendingDraw,
    Status,
)
from gateway.store.schema import migrate

_COLUMNS = (
    "id", "created_at", "task", "principal", "model", "stream", "status", "served_by", "reason",
    "would_be_reason", "score", "threshold", "ood_score", "template", "student", "router", "arm",
    "error", "request", "answer", "prefix", "draw_p", "overhead_ms", "total_ms",
    "api", "end_user", "bodies",
)  # fmt: skip
_JSON = frozenset({"request", "answer", "prefix"})
_ATTEMPT = tuple(f.name for f in dataclasses.fields(Attempt))
_INSERT_DRAW = """
INSERT OR IGNORE INTO draws (exchange_id, task, p, wants, state, tries, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""

_DROP_BODIES = """
UPDATE exchanges SET request = x'7b7d', answer = NULL, prefix = NULL, bodies = 0 WHERE id IN (
    SELECT id FROM exchanges WHERE served_by = 'student' AND bodies = 1
        AND NOT EXISTS (SELECT 1 FROM draws WHERE exchange_id = exchanges.id)
    ORDER BY created_at LIMIT ?)
"""
BUSY_S = 10.0
"""How long a statement waits for other writers."""


def _insert_sql(table: str, columns: Sequence[str]) -> str:
    marks = ", ".join("?" * len(columns))
    return f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"


_INSERT = _insert_sql("exchanges", _COLUMNS)
_INSERT_ATTEMPT = _insert_sql("attempts", ("exchange_id", "seq", *_ATTEMPT))


class SqliteStore:
    """The repository over one SQLite file."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = self._db = connection
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
            db = _connect(path, busy_s)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA foreign_keys=ON")
            migrate(db, path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        return cls(db, path)

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

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def put(self, exchanges: Iterable[Exchange]) -> None:
        """Commit exchanges in one transaction; ids already there are left as they are.

        Raises:
            StoreError: nothing of the batch is stored.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for exchange in exchanges:
                self._insert(exchange)
            self._db.execute("COMMIT")
        except (sqlite3.Error, TypeError, ValueError) as error:
            self._roll_back()
            raise write_error(self.path, error) from error

    def finish_draw(self, exchange_id: str, draw: Draw, now: float) -> None:
        """Record how a draw's second half went.

        Raises:
            StoreError: it is not stored.
        """
        try:
            self._db.execute(
                "UPDATE draws SET state=?, tries=?, answer=?, agrees=?, score=?, updated_at=? "
                "WHERE exchange_id=?",
                (draw.state.value, draw.tries, _dump(draw.answer), draw.agrees, draw.score, now,
                 exchange_id),
            )  # fmt: skip
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise write_error(self.path, error) from error

    def pending_draws(self, limit: int) -> list[PendingDraw]:
        """The oldest draws that wait for their second answer."""
        rows = self._db.execute(
            "SELECT d.exchange_id, d.task, d.wants, d.tries, e.created_at, e.request, e.answer, "
            "e.router, e.api FROM draws d "
            "JOIN exchanges e ON e.id = d.exchange_id WHERE d.state='pending' "
            "ORDER BY d.updated_at LIMIT ?",
            (limit,),
        )
        return [
            PendingDraw(
                id_, task, wants, tries, at, _load(request), _load(answer), router, Api(api)
            )
            for id_, task, wants, tries, at, request, answer, router, api in rows
        ]

    def judgement(self, key: str) -> bool | None:
        """What the judge comparator said of this pair of answers before."""
        sql = "SELECT agrees FROM judgements WHERE key=?"
        row = self._db.execute(sql, (key,)).fetchone()
        return None if row is None else bool(row[0])

    def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> None:
        """Keep the judge comparator's word: asked once, paid once.

        Raises:
            StoreError: it is not stored.
        """
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO judgements (key, task, agrees, at) VALUES (?, ?, ?, ?)",
                (key, task, int(agrees), now),
            )
        except sqlite3.Error as error:
            raise write_error(self.path, error) from error

    def used_bytes(self) -> int:
        """What rows take of the file; pages that were freed are room."""
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
        try:
            return self._db.execute(_DROP_BODIES, (limit,)).rowcount
        except sqlite3.Error as error:
            raise write_error(self.path, error) from error

    def moved(self) -> bool:
        """Whether the path leads to another file, or none: what is written then is lost."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def read(self, which: Filter) -> Iterator[Exchange]:
        """Exchanges by time, one after another: memory does not grow with the store."""
        where, values = _where(which)
        order = "DESC" if which.newest_first else "ASC"
        limit = f" LIMIT {int(which.limit)}" if which.limit is not None else ""
        sort = f" ORDER BY created_at {order}, id {order}{limit}"
        sql = f"SELECT {', '.join(_COLUMNS)} FROM exchanges{where}{sort}"
        for row in self._db.execute(sql, values):
            yield self._exchange(row)

    def starting_with(self, prefix: str) -> list[Exchange]:
        """The exchange of that id; else those whose ids start so, three at most."""
        exact = list(self.read(Filter(ids=(prefix,))))
        if exact:
            return exact
        sql = "SELECT id FROM exchanges WHERE id >= ? AND id < ? LIMIT 3"
        ids = tuple(row[0] for row in self._db.execute(sql, (prefix, prefix + "\x7f")))
        return list(self.read(Filter(ids=ids))) if ids else []

    def last_row(self) -> int:
        """The place of the exchange that was committed last."""
        return int(self._db.execute("SELECT coalesce(max(rowid), 0) FROM exchanges").fetchone()[0])

    def rows_after(self, row: int, task: str | None) -> tuple[list[Exchange], int]:
        """Some exchanges that were committed after that place, and the place behind them."""
        sql = (
            "SELECT rowid, id FROM exchanges WHERE rowid > ? AND (? IS NULL OR task = ?) "
            "ORDER BY rowid LIMIT 100"
        )
        found = self._db.execute(sql, (row, task, task)).fetchall()
        ids = tuple(id_ for _, id_ in found)
        rows = list(self.read(Filter(ids=ids))) if ids else []
        return rows, found[-1][0] if found else row

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read within is of one moment; writers go on meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def count(self, which: Filter) -> int:
        """How many exchanges match."""
        where, values = _where(which)
        sql = f"SELECT count(*) FROM exchanges{where}"
        return int(self._db.execute(sql, values).fetchone()[0])

    def ids(self) -> set[str]:
        """Every stored exchange id."""
        return {row[0] for row in self._db.execute("SELECT id FROM exchanges")}

    def writable(self) -> bool:
        """Whether a write transaction can be opened now."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("ROLLBACK")
        except sqlite3.Error:
            self._roll_back()
            return False
        return True

    def _insert(self, exchange: Exchange) -> None:
        if not self._db.execute(_INSERT, _values(exchange)).rowcount:
            return
        for seq, attempt in enumerate(exchange.attempts):
            fields = [getattr(attempt, name) for name in _ATTEMPT]
            self._db.execute(_INSERT_ATTEMPT, (exchange.id, seq, *fields))
        if exchange.draw is not None:
            d = exchange.draw
            self._db.execute(
                _INSERT_DRAW,
                (exchange.id, exchange.task, d.p, d.wants, d.state.value, d.tries,
                 exchange.created_at),
            )  # fmt: skip

    def _exchange(self, row: Sequence[Any]) -> Exchange:
        values = dict(zip(_COLUMNS, row, strict=True))
        for name in _JSON:
            values[name] = _load(values[name])
        values["stream"] = bool(values["stream"])
        values["bodies"] = bool(values["bodies"])
        values["status"] = Status(values["status"])
        values["api"] = Api(values["api"])
        values["attempts"] = self._attempts(values["id"])
        values["draw"] = self._draw(values["id"])
        return Exchange(**values)

    def _attempts(self, exchange_id: str) -> tuple[Attempt, ...]:
        sql = f"SELECT {', '.join(_ATTEMPT)} FROM attempts WHERE exchange_id=? ORDER BY seq"
        return tuple(Attempt(*row) for row in self._db.execute(sql, (exchange_id,)))

    def _draw(self, exchange_id: str) -> Draw | None:
        row = self._db.execute(
            "SELECT p, wants, state, tries, answer, agrees, score FROM draws WHERE exchange_id=?",
            (exchange_id,),
        ).fetchone()
        if row is None:
            return None
        agrees = None if row[5] is None else bool(row[5])
        return Draw(row[0], row[1], DrawState(row[2]), row[3], _load(row[4]), agrees, row[6])

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=busy_s)


def _values(e: Exchange) -> tuple[Any, ...]:
    """In the order of ``_COLUMNS``; written out, since this runs once per answer."""
    return (
        e.id, e.created_at, e.task, e.principal, e.model, int(e.stream), e.status.value,
        e.served_by, e.reason, e.would_be_reason, e.score, e.threshold, e.ood_score, e.template,
        e.student, e.router, e.arm, e.error, _dump(e.request), _dump(e.answer), _dump(e.prefix),
        e.draw_p, e.overhead_ms, e.total_ms, e.api.value, e.end_user, int(e.bodies),
    )  # fmt: skip


def _dump(value: Any) -> bytes | None:
    return None if value is None else orjson.dumps(value)


def _load(value: bytes | None) -> Any:
    return None if value is None else orjson.loads(value)


def _where(which: Filter) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for column in ("task", "principal", "served_by", "reason", "status"):
        if (value := getattr(which, column)) is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    if which.since is not None:
        parts.append("created_at >= ?")
        values.append(which.since)
    if which.until is not None:
        parts.append("created_at < ?")
        values.append(which.until)
    if which.after is not None:
        parts.append("(created_at, id) > (?, ?)")
        values += which.after
    if which.text is not None:
        parts.append("(instr(request, ?) OR instr(answer, ?))")
        # As it stands in stored JSON, without the quotes around it.
        values += [orjson.dumps(which.text)[1:-1]] * 2
    if which.fallbacks:
        parts.append(
            "served_by = 'teacher' AND status = 'complete' "
            "AND reason NOT IN ('override', 'no_student')"
        )
    if which.drawn:
        parts.append("draw_p IS NOT NULL AND id IN (SELECT exchange_id FROM draws)")
    if which.ids:
        parts.append(f"id IN ({', '.join('?' * len(which.ids))})")
        values += which.ids
    return (" WHERE " + " AND ".join(parts) if parts else ""), values
