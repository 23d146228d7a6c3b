"""Ships the outbox to Postgres: in the order of commits, and freed only once it is there.

A batch that was cut is shipped again; what is there already is left as it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.store.faults import Fault, WriteError
from gateway.store.records import Exchange
from gateway.store.repository import Repository
from gateway.store.sqlite import SqliteStore

BATCH = 500
IDLE_S = 0.2
LONGEST_PAUSE_S = 10.0


@dataclass(slots=True)
class Shipper:
    """A worker beside the requests, in one process over an outbox. ``pool`` has one thread."""

    outbox: SqliteStore
    postgres: Repository
    metrics: Metrics
    pool: Executor
    sleep: Callable[[float], Any] = asyncio.sleep
    rng: random.Random = field(default_factory=random.Random)
    _tries: int = 0
    _stuck: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Until cancelled; then once more what waits, if Postgres takes it."""
        offload = Offload(self.pool)
        try:
            while True:
                shipped = await offload.run(self.ship)
                if shipped is None:
                    self._tries += 1
                    pause = min(IDLE_S * 2.0**self._tries, LONGEST_PAUSE_S)
                    await self.sleep(pause * self.rng.uniform(0.5, 1.0))
                else:
                    self._tries = 0
                    if shipped < BATCH:
                        await self.sleep(IDLE_S)
        finally:
            while await offload.run(self.ship):
                pass

    def ship(self) -> int | None:
        """One batch: how many exchanges left the outbox; None where Postgres does not take them."""
        try:
            batch = self._batch()
            self.metrics.outbox.set(self.outbox.backlog())
            if not batch:
                return 0
            self.postgres.put(batch)
            self.outbox.delete([exchange.id for exchange in batch])
        except WriteError as error:
            if error.fault is Fault.UNFIT and len(batch) > 0:
                return self._one_by_one(batch)
            self._failed(error)
            return None
        except StoreError as error:
            self._failed(error)
            return None
        self.metrics.shipped.inc(len(batch))
        return len(batch)

    def _batch(self) -> list[Exchange]:
        rows = self.outbox.oldest_rows(BATCH + len(self._stuck))
        return [row for row in rows if row.id not in self._stuck][:BATCH]

    def _one_by_one(self, batch: list[Exchange]) -> int | None:
        """One row that Postgres can never take must not hold up the others; it stays here."""
        shipped = 0
        for exchange in batch:
            try:
                self.postgres.put([exchange])
                self.outbox.delete([exchange.id])
                shipped += 1
            except WriteError as error:
                if error.fault is not Fault.UNFIT:
                    self._failed(error)
                    return None
                self._stuck.add(exchange.id)
                log("not_shippable", id=exchange.id, error=str(error))
                self.metrics.records.labels("not_shippable").inc()
        self.metrics.shipped.inc(shipped)
        return shipped

    def _failed(self, error: Exception) -> None:
        if self._tries == 0:
            log("not_shipped", error=str(error))
