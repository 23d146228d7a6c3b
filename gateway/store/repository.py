"""Exchanges, attempts and draws in any database: SQL that SQLite and Postgres both understand."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import orjson

from gateway.api.request import Api
from gateway.store.database import Database
from gateway.store.faults import WriteError
from gateway.store.records import (
    Attempt,
    Draw,
    DrawState,
    Exchange,
    Filter,
    PendingDraw,
    Status,
)
from gateway.store.rows import ATTEMPT_COLUMNS, COLUMNS, dump, load

_JSON = frozenset({"request", "answer", "prefix"})
T = TypeVar("T")
KEEP_JUDGEMENT = (
    "INSERT INTO judgements (key, task, agrees, at) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET agrees = excluded.agrees, at = excluded.at"
)
CHUNK = 200
"""Exchanges whose attempts and draws are read together."""


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items, ``size`` at a time."""
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


class Repository(ABC):
    """One database. ``name`` is how messages call it. Several threads may share one."""

    def __init__(self, connection: Database, name: str) -> None:
        self.connection = connection
        self._db = connection
        self.name = name

    @abstractmethod
    def begin(self) -> None:
        """Open a transaction, alone among writers."""

    @abstractmethod
    def error(self, error: Exception) -> WriteError:
        """What an exception of the database means."""

    @abstractmethod
    def put(self, exchanges: Iterable[Exchange]) -> int:
        """Commit exchanges in one transaction; ids already there are left as they are.

        Returns:
            How many were new.

        Raises:
            WriteError: nothing of the batch is stored.
        """

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything within happens or nothing does, alone among writers.

        Raises:
            WriteError: nothing happened.
        """
        with self._db.turn:
            try:
                self.begin()
                yield
                self._db.execute("COMMIT")
            except self.errors as error:
                raise self.error(error) from error
            finally:
                self.roll_back()

    errors: tuple[type[Exception], ...]
    """What the database raises, and what values do that cannot be stored."""

    def roll_back(self) -> None:
        """Leave an open transaction."""
        with contextlib.suppress(*self.errors):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def finish_draw(self, exchange_id: str, draw: Draw, now: float) -> None:
        """Record how a draw's second half went.

        Raises:
            WriteError: it is not stored.
        """
        agrees = None if draw.agrees is None else int(draw.agrees)
        with self._written():
            self._db.execute(
                "UPDATE draws SET state = ?, tries = ?, answer = ?, agrees = ?, score = ?, "
                "updated_at = ?, leased_until = 0 WHERE exchange_id = ?",
                (draw.state.value, draw.tries, dump(draw.answer), agrees, draw.score, now,
                 exchange_id),
            )  # fmt: skip

    def pending_draws(self, limit: int) -> list[PendingDraw]:
        """The oldest draws that wait for their second answer, whoever works on them."""
        return self._pending(
            "SELECT exchange_id FROM draws WHERE state = 'pending' ORDER BY updated_at LIMIT ?",
            (limit,),
        )

    def claim_draws(
        self, limit: int, now: float, lease_s: float, tasks: Sequence[str]
    ) -> list[PendingDraw]:
        """Draws of these tasks that this process may work on until the lease ends: nobody else
        gets them.

        Raises:
            WriteError: none was claimed.
        """
        if not tasks:
            return []
        found = (
            "SELECT exchange_id FROM draws WHERE state = 'pending' AND leased_until < ? "
            f"AND task IN ({', '.join('?' * len(tasks))}) "
            f"ORDER BY updated_at LIMIT ?{self.skip_locked}"
        )
        with self._written():
            rows = self._db.execute(
                f"UPDATE draws SET leased_until = ? WHERE exchange_id IN ({found}) "
                "RETURNING exchange_id",
                (now + lease_s, now, *tasks, limit),
            ).fetchall()
        if not rows:
            return []
        marks = ", ".join("?" * len(rows))
        return self._pending(
            f"SELECT exchange_id FROM draws WHERE exchange_id IN ({marks})",
            [row[0] for row in rows],
        )

    skip_locked = ""
    """What makes claims of several processes pass each other by."""

    def _pending(self, which: str, values: Sequence[Any]) -> list[PendingDraw]:
        rows = self._db.execute(
            "SELECT d.exchange_id, d.task, d.wants, d.tries, e.created_at, e.request, e.answer, "
            "e.router, e.api FROM draws d JOIN exchanges e ON e.id = d.exchange_id "
            f"WHERE d.exchange_id IN ({which}) ORDER BY d.updated_at",
            values,
        )
        return [
            PendingDraw(id_, task, wants, tries, at, load(request), load(answer), router, Api(api))
            for id_, task, wants, tries, at, request, answer, router, api in rows
        ]

    def judgement(self, key: str) -> bool | None:
        """What the judge comparator said of this pair of answers before."""
        row = self._db.execute("SELECT agrees FROM judgements WHERE key = ?", (key,)).fetchone()
        return None if row is None else bool(row[0])

    def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> None:
        """Keep the judge comparator's word: asked once, paid once.

        Raises:
            WriteError: it is not stored.
        """
        with self._written():
            self._db.execute(KEEP_JUDGEMENT, (key, task, int(agrees), now))

    def read(self, which: Filter) -> Iterator[Exchange]:
        """Exchanges by time, one after another: memory does not grow with the store."""
        where, values = self._where(which)
        order = "DESC" if which.newest_first else "ASC"
        limit = f" LIMIT {int(which.limit)}" if which.limit is not None else ""
        sort = f" ORDER BY created_at {order}, id {order}{limit}"
        columns = self.columns()
        sql = f"SELECT {', '.join(columns)} FROM exchanges{where}{sort}"
        chunk: list[Sequence[Any]] = []
        few = bool(which.ids or which.limit)
        for row in self._db.execute(sql, values) if few else self._db.stream(sql, values):
            chunk.append(row)
            if len(chunk) == CHUNK:
                yield from self._exchanges(columns, chunk)
                chunk = []
        yield from self._exchanges(columns, chunk)

    def columns(self) -> Sequence[str]:
        """The columns of exchanges that the database has: an older schema lacks the last ones."""
        return COLUMNS

    def of_ids(self, ids: Sequence[str]) -> list[Exchange]:
        """Exchanges of these ids, in this order; ids that are not there are left out."""
        found = {e.id: e for e in self.read(Filter(ids=tuple(ids)))} if ids else {}
        return [found[id_] for id_ in ids if id_ in found]

    def starting_with(self, prefix: str) -> list[Exchange]:
        """The exchange of that id; else those whose ids start so, three at most."""
        exact = self.of_ids([prefix])
        if exact:
            return exact
        sql = "SELECT id FROM exchanges WHERE id >= ? AND id < ? LIMIT 3"
        ids = tuple(row[0] for row in self._db.execute(sql, (prefix, prefix + "~")))
        return list(self.read(Filter(ids=ids))) if ids else []

    row_number = "rowid"
    """The column that counts exchanges as they are committed."""

    def last_row(self) -> int:
        """The place of the exchange that was committed last."""
        sql = f"SELECT coalesce(max({self.row_number}), 0) FROM exchanges"
        return int(self._db.execute(sql).fetchone()[0])

    def rows_after(self, row: int, task: str | None) -> tuple[list[Exchange], int]:
        """Some exchanges that were committed after that place, and the place behind them."""
        of_task, values = ("", [row]) if task is None else (" AND task = ?", [row, task])
        number = self.row_number
        sql = f"SELECT {number}, id FROM exchanges WHERE {number} > ?{of_task} "
        found = self._db.execute(f"{sql} ORDER BY {number} LIMIT 100", values).fetchall()
        ids = tuple(id_ for _, id_ in found)
        rows = list(self.read(Filter(ids=ids))) if ids else []
        return rows, found[-1][0] if found else row

    begin_snapshot = "BEGIN"

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read within is of one moment; writers go on meanwhile."""
        with self._db.turn:
            self._db.execute(self.begin_snapshot)
            try:
                yield
            finally:
                self.roll_back()

    def count(self, which: Filter) -> int:
        """How many exchanges match."""
        where, values = self._where(which)
        sql = f"SELECT count(*) FROM exchanges{where}"
        return int(self._db.execute(sql, values).fetchone()[0])

    def ids(self) -> set[str]:
        """Every stored exchange id."""
        return {row[0] for row in self._db.execute("SELECT id FROM exchanges")}

    def _exchanges(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> Iterator[Exchange]:
        if not rows:
            return
        ids = [row[0] for row in rows]
        attempts, draws = self._attempts(ids), self._draws(ids)
        for row in rows:
            values = dict(zip(columns, row, strict=True))
            for name in _JSON:
                values[name] = load(values[name])
            values["stream"] = bool(values["stream"])
            values["bodies"] = bool(values["bodies"])
            values["no_train"] = bool(values.get("no_train"))
            values["status"] = Status(values["status"])
            values["api"] = Api(values["api"])
            yield Exchange(
                **values, attempts=tuple(attempts.get(row[0], ())), draw=draws.get(row[0])
            )

    def _attempts(self, ids: Sequence[str]) -> dict[str, list[Attempt]]:
        sql = (
            f"SELECT exchange_id, {', '.join(ATTEMPT_COLUMNS)} FROM attempts WHERE exchange_id IN "
            f"({', '.join('?' * len(ids))}) ORDER BY exchange_id, seq"
        )
        found: dict[str, list[Attempt]] = {}
        for exchange_id, *values in self._db.execute(sql, ids):
            found.setdefault(exchange_id, []).append(Attempt(*values))
        return found

    def _draws(self, ids: Sequence[str]) -> dict[str, Draw]:
        sql = (
            "SELECT exchange_id, p, wants, state, tries, answer, agrees, score FROM draws WHERE "
            f"exchange_id IN ({', '.join('?' * len(ids))})"
        )
        return {
            id_: Draw(p, wants, DrawState(state), tries, load(answer),
                      None if agrees is None else bool(agrees), score)
            for id_, p, wants, state, tries, answer, agrees, score in self._db.execute(sql, ids)
        }  # fmt: skip

    contains = "(instr(request, ?) OR instr(answer, ?))"
    """Whether a text is in request or answer, as they stand in the database."""

    def text_as_stored(self, text: str) -> Any:
        """A text as it stands within stored JSON, without the quotes around it."""
        return orjson.dumps(text)[1:-1]

    def _where(self, which: Filter) -> tuple[str, list[Any]]:
        parts: list[str] = []
        values: list[Any] = []
        for column in ("task", "principal", "served_by", "reason", "status"):
            if (value := getattr(which, column)) is not None:
                parts.append(f"{column} = ?")
                values.append(str(value))
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
            parts.append(self.contains)
            values += [self.text_as_stored(which.text)] * 2
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

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            raise self.error(error) from error
