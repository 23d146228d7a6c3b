"""What keys have used and which of them are revoked: shared by every process over one store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.store.repository import Repository
from gateway.store.shared import SharedTables
from gateway.store.sqlite import SqliteStore

_ADD = """
INSERT INTO key_usage (principal, "window", requests, tokens, usd) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (principal, "window") DO UPDATE SET requests = key_usage.requests + excluded.requests,
    tokens = key_usage.tokens + excluded.tokens, usd = key_usage.usd + excluded.usd
"""


@dataclass(frozen=True, slots=True)
class Use:
    """What was used in one window of time. Adds up."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Use) -> Use:
        return Use(self.requests + other.requests, self.tokens + other.tokens, self.usd + other.usd)


Window = str
"""``m29000000`` is a minute of Unix time, ``d20000`` a day of UTC."""
Uses = Mapping[tuple[str, Window], Use]
"""By principal and window."""


class AccessStore(SharedTables):
    """The tables, over a connection of their own.

    In SQLite usage is committed without an fsync of its own: a power failure may forget the last
    seconds of it, and costs no request's capture a disk turn.
    """

    def __init__(self, store: Repository) -> None:
        super().__init__(store)
        if isinstance(store, SqliteStore):
            store.connection.execute("PRAGMA synchronous=NORMAL")

    def share(self, mine: Uses, windows: Sequence[Window]) -> tuple[Uses, frozenset[str]]:
        """Add what this process has counted; read what all have, and who is revoked. In one
        transaction.

        Raises:
            StoreError: nothing was added.
        """
        with self.transaction():
            rows = [(*key, use.requests, use.tokens, use.usd) for key, use in mine.items()]
            if rows:
                self._db.executemany(_ADD, rows)
            marks = ", ".join("?" * len(windows))
            found = self._db.execute(
                f'SELECT principal, "window", requests, tokens, usd FROM key_usage '
                f'WHERE "window" IN ({marks})',
                list(windows),
            )
            uses = {(name, window): Use(*counts) for name, window, *counts in found}
            return uses, self._revoked()

    def forget(self, before_minute: Window) -> None:
        """Drop minutes that are over; days stay, as the record of what was spent.

        Raises:
            StoreError: the store does not answer.
        """
        with self.transaction():
            self._db.execute(
                'DELETE FROM key_usage WHERE "window" LIKE ? AND "window" < ?',
                ("m%", before_minute),
            )

    def _revoked(self) -> frozenset[str]:
        return frozenset(row[0] for row in self._db.execute("SELECT principal FROM revoked_keys"))

    def revoke(self, principal: str, note: str, by: str, now: float) -> None:
        """Keep a principal out, whatever keys it has.

        Raises:
            StoreError: it is not stored.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO revoked_keys (principal, note, by, at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (principal) DO UPDATE SET note = excluded.note, by = excluded.by, "
                "at = excluded.at",
                (principal, note, by, now),
            )

    def restore(self, principal: str) -> bool:
        """Let it in again; False where it was not revoked.

        Raises:
            StoreError: it is not stored.
        """
        with self.transaction():
            sql = "DELETE FROM revoked_keys WHERE principal = ?"
            return bool(self._db.execute(sql, (principal,)).rowcount)
