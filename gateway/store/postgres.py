"""Exchanges in Postgres, for several gateways: what each one's SQLite outbox ships.

The connection is made when it is first needed, and again after it broke; while Postgres is away
every call fails at once, but for one try a second. ``psycopg`` is loaded only where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gateway.errors import StoreError
from gateway.store.database import Rows
from gateway.store.faults import Fault, WriteError
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

if TYPE_CHECKING:
    import psycopg

CONNECT_S = 5
STATEMENT_S = 30
RETRY_S = 1.0
_WRITERS = 7_310_001
"""The advisory lock of whoever writes what depends on the order of commits."""
_OPTIONS: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "application_name": "understudy",
    "options": f"-c statement_timeout={STATEMENT_S * 1000} -c lock_timeout={STATEMENT_S * 1000}",
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": STATEMENT_S * 1000,
}
_FETCH = 500


class PostgresDatabase:
    """A connection that takes SQLite's ``?`` for parameters, and raises ``WriteError``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self._next_try = 0.0
        self.turn = threading.RLock()

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        connection = self._connection
        if connection is None or connection.closed:
            return False
        return connection.info.transaction_status != 0  # idle

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows:
        """Run one statement.

        Raises:
            WriteError: Postgres is away, or refuses it.
        """
        with self.turn, self._told():
            return self._connected().execute(_translated(sql), [_plain(p) for p in parameters])

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement for each of several rows."""
        with self.turn, self._told():
            cursor = self._connected().cursor()
            cursor.executemany(_translated(sql), [[_plain(p) for p in row] for row in parameters])
            return cursor

    def stream(self, sql: str, parameters: Sequence[Any], /) -> Iterator[Any]:
        """Rows by a cursor on the server, a few hundred at a time. Only where no other thread uses
        the connection meanwhile."""
        with self._told(), contextlib.ExitStack() as stack:
            connection = self._connected()
            if not self.in_transaction:
                stack.enter_context(connection.transaction())
            cursor = stack.enter_context(connection.cursor("understudy_read"))
            cursor.execute(_translated(sql), [_plain(p) for p in parameters])
            while rows := cursor.fetchmany(_FETCH):
                yield from rows

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows into a table by COPY.

        Source: postgresql.org/docs/current/sql-copy.html.
        """
        sql = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with (
            self.turn,
            self._told(),
            self._connected().cursor() as cursor,
            cursor.copy(sql) as copy,
        ):
            for row in rows:
                copy.write_row([_plain(value) for value in row])

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> psycopg.Connection[Any]:
        with self.turn:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg
        from psycopg.types.string import TextLoader

        if time.monotonic() < self._next_try:
            raise WriteError("postgres: it was away a moment ago", Fault.UNAVAILABLE)
        try:
            connection = psycopg.connect(
                self._url, autocommit=True, cursor_factory=psycopg.ClientCursor, **_OPTIONS
            )
            # Stored JSON is read by whoever wants it, as SQLite's is.
            connection.adapters.register_loader("json", TextLoader)
            return connection
        except psycopg.Error:
            self._next_try = time.monotonic() + RETRY_S
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except (psycopg.Error, UnicodeError) as error:
            raise _write_error(error) from None  # the cause may quote the URL


class PostgresStore(Repository):
    """The repository over one Postgres database."""

    errors = (StoreError, TypeError, ValueError)
    skip_locked = " FOR UPDATE SKIP LOCKED"
    row_number = "seq"
    begin_snapshot = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    contains = "(position(? IN request::text) > 0 OR position(? IN answer::text) > 0)"

    def __init__(self, url: str) -> None:
        """``url`` as libpq takes it; nothing is connected yet."""
        self._postgres = PostgresDatabase(url)
        super().__init__(self._postgres, "postgres")
        self._upgraded = False

    def begin(self) -> None:
        """Open a transaction, alone among writers: numbers of draws come in the order of commits,
        or an audit that follows them would pass one by."""
        self._db.execute("BEGIN")
        self._db.execute("SELECT pg_advisory_xact_lock(?)", (_WRITERS,))

    def error(self, error: Exception) -> WriteError:
        """What an exception of the database means."""
        return error if isinstance(error, WriteError) else WriteError(str(error), Fault.UNFIT)

    def columns(self) -> Sequence[str]:
        """The columns that there are: a gateway with ``migrate: false`` serves over the schema of
        its predecessor until somebody upgrades it."""
        if not self._upgraded:
            found = self._db.execute(
                "SELECT count(*) FROM information_schema.columns "
                "WHERE table_name = 'exchanges' AND column_name = ?", (COLUMNS[-1],)
            ).fetchone()  # fmt: skip
            self._upgraded = bool(found[0])
        return COLUMNS if self._upgraded else COLUMNS[:-1]

    def text_as_stored(self, text: str) -> Any:
        """A text as it stands within stored JSON."""
        return super().text_as_stored(text).decode()

    def put(self, exchanges: Iterable[Exchange]) -> int:
        """Commit exchanges in one transaction, by COPY into a table of the transaction's own and
        from there; ids already there are left as they are.

        Returns:
            How many were new.

        Raises:
            WriteError: nothing of the batch is stored.
        """
        rows = list(exchanges)
        db = self._postgres
        columns = self.columns()
        if len(columns) < len(COLUMNS) and any(exchange.no_train for exchange in rows):
            raise WriteError(
                "postgres: the schema is older than this gateway and has no place for what must "
                "not be trained on; run understudy db upgrade", Fault.UNAVAILABLE,
            )  # fmt: skip
        tables = {**_TABLES, "exchanges": columns}
        with self.transaction():
            for table, names in tables.items():
                db.execute(
                    f"CREATE TEMPORARY TABLE IF NOT EXISTS {_new(table, names)} "
                    "ON COMMIT DELETE ROWS AS "
                    f"SELECT {', '.join(names)} FROM {table} WITH NO DATA"
                )
            values = (exchange_values(exchange)[: len(columns)] for exchange in rows)
            db.copy(_new("exchanges", columns), columns, values)
            db.copy(_new("attempts", _TABLES["attempts"]), _TABLES["attempts"], (
                attempt_values(e.id, seq, a) for e in rows for seq, a in enumerate(e.attempts)
            ))  # fmt: skip
            db.copy(_new("draws", DRAW_COLUMNS), DRAW_COLUMNS, (
                draw_values(e, e.draw) for e in rows if e.draw is not None
            ))  # fmt: skip
            new = db.execute(_moved("exchanges", columns, "")).rowcount
            for table in ("attempts", "draws"):
                db.execute(_moved(table, tables[table], _ORDER.get(table, "")))
        return new


_TABLES = {
    "exchanges": COLUMNS,
    "attempts": ("exchange_id", "seq", *ATTEMPT_COLUMNS),
    "draws": DRAW_COLUMNS,
}
_ORDER = {"draws": " ORDER BY updated_at, exchange_id"}


def _new(table: str, columns: Sequence[str]) -> str:
    """A temporary table of the session: another one once the schema was upgraded."""
    return f"new_{table}_{len(columns)}"


def _moved(table: str, columns: Sequence[str], order: str) -> str:
    names = ", ".join(columns)
    return (
        f"INSERT INTO {table} ({names}) SELECT {names} FROM {_new(table, columns)}{order} "
        "ON CONFLICT DO NOTHING"
    )


@functools.lru_cache(512)
def _translated(sql: str) -> Any:
    """``psycopg`` writes parameters as ``%s``."""
    return sql.replace("%", "%%").replace("?", "%s")


def _plain(value: Any) -> Any:
    """A value as Postgres takes it: JSON as text, truth as a number, no NUL in a text."""
    if value is True or value is False:
        return int(value)
    if isinstance(value, bytes):
        value = value.decode()
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value


def _write_error(error: Exception) -> WriteError:
    """What an exception of psycopg means.

    Source: postgresql.org/docs/current/errcodes-appendix.html.
    """
    state = getattr(error, "sqlstate", None) or ""
    kind = state[:2]
    if state == "53100":
        fault = Fault.FULL
    elif kind in {"22", "23"} or isinstance(error, UnicodeError):
        fault = Fault.UNFIT
    elif state in {"55P03", "40001", "40P01"}:
        fault = Fault.BUSY
    else:
        fault = Fault.UNAVAILABLE
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WriteError(f"postgres: {first}", fault)
