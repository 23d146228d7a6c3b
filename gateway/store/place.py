"""Where exchanges are kept: a SQLite file, or Postgres behind such a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gateway.store.access import AccessStore
from gateway.store.audits import AuditStore
from gateway.store.feedback import FeedbackStore
from gateway.store.keeping import Keeping
from gateway.store.ledger import Ledger
from gateway.store.repository import Repository
from gateway.store.samples import Samples
from gateway.store.sqlite import SqliteStore
from gateway.store.students import Registry
from gateway.store.usage import Usage


@dataclass(frozen=True, slots=True)
class Place:
    """``path`` is the file that answers wait for; with ``postgres`` (a URL, secret) it is an
    outbox, and everything that processes share is there."""

    path: Path
    postgres: str | None = field(default=None, repr=False)

    @property
    def shared(self) -> bool:
        """Whether several gateways keep their exchanges together."""
        return self.postgres is not None

    @property
    def there(self) -> bool:
        """Whether there is something to read: Postgres, or a file that a gateway made."""
        return self.shared or self.path.is_file()

    def repository(self) -> Repository:
        """A connection of its own for writing.

        Raises:
            StoreError: the file cannot be opened. Postgres may be away: that is heard at use.
        """
        if self.postgres is None:
            return SqliteStore.open(self.path)
        from gateway.store.postgres import PostgresStore

        return PostgresStore(self.postgres)

    def reader(self) -> Repository:
        """A connection of its own for reading.

        Raises:
            StoreError: there is no such file, or it cannot be read.
        """
        return SqliteStore.read_only(self.path) if self.postgres is None else self.repository()

    def audits(self) -> AuditStore:
        """The audit's tables."""
        return AuditStore(self.repository())

    def access(self) -> AccessStore:
        """What keys used."""
        return AccessStore(self.repository())

    def feedback(self) -> FeedbackStore:
        """What people said."""
        return FeedbackStore(self.repository())

    def keeping(self) -> Keeping:
        """What is kept how long."""
        return Keeping(self.repository())

    def registry(self) -> Registry:
        """Student versions, and who serves."""
        return Registry(self.repository())

    def ledger(self) -> Ledger:
        """Runs of distillation."""
        return Ledger(self.repository())

    def samples(self) -> Samples:
        """Which exchange is for what."""
        return Samples(self.repository())

    def usage(self) -> Usage:
        """What became of requests, in numbers."""
        return Usage(self.reader())
