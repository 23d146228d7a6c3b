"""What works beside the requests of a process: second answers, probes, health, the registry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gateway.auditor import Auditor
from gateway.books import Books
from gateway.capture import Capture
from gateway.deployer import Deployer
from gateway.draws import DrawWorker
from gateway.equivalence import Equivalence
from gateway.halves import Halves, OwnHalves, SharedHalves
from gateway.health import HealthChecker
from gateway.http1 import Pool
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.prober import Prober
from gateway.reconciler import Reconciler
from gateway.rolling_back import Rollbacks
from gateway.settings import Config
from gateway.shipping import Shipper
from gateway.store.place import Place
from gateway.store.repository import Repository
from gateway.store.sqlite import SqliteStore
from gateway.store_figures import LedgerReader
from gateway.tasks import Tasks
from gateway.workers import Worker
from router.encoder import Encoders


class Closable(Protocol):
    """A connection."""

    def close(self) -> None:
        """End it."""
        ...


C = TypeVar("C", bound=Closable)


def kept(stack: contextlib.AsyncExitStack, opened: C) -> C:
    """Close it with the stack."""
    stack.callback(opened.close)
    return opened


@dataclass(frozen=True, slots=True)
class Ground:
    """What background work stands on. Only the ``first`` of several workers does what needs doing
    once."""

    tasks: Tasks
    place: Place
    metrics: Metrics
    pool: Pool
    books: Books
    auditor: Auditor
    offload: Offload
    stack: contextlib.AsyncExitStack
    first: bool

    def second_answers(self, reader: Repository, capture: Capture) -> list[Worker]:
        """Draws get their other half, and the teacher its probe set."""
        if not self.first:
            return []
        offload = self.offload
        halves: Halves = (
            SharedHalves(reader, offload, self.tasks)
            if self.place.shared
            else OwnHalves(reader, capture, offload)
        )
        equivalence = Equivalence(self.pool, halves, self.books, offload)
        return [
            DrawWorker(self.tasks, halves, self.pool, self.books, equivalence, offload),
            Prober(self.tasks, self.auditor.store, self.pool, self.books, offload),
        ]

    def students(
        self,
        config: Callable[[], Config],
        secrets: Callable[[], Mapping[str, str]],
        encoders: Encoders | None,
    ) -> tuple[Deployer, list[Worker]]:
        """The health of students' replicas, and what follows the registry."""
        registry = kept(self.stack, self.place.registry())
        health = HealthChecker(self.tasks, self.pool, self.metrics)
        deployer = Deployer(
            self.tasks, registry, self.auditor, self.metrics, self.offload, config, secrets,
            encoders,
        )  # fmt: skip
        reconciler = Reconciler(deployer.students, self.pool, health, self.metrics)
        deployer.ready = reconciler.look
        workers: list[Worker] = [health, deployer, reconciler]
        if self.first:
            workers.append(Rollbacks(self.tasks, registry, deployer, self.offload))
        return deployer, workers

    def figures(self) -> LedgerReader:
        """What ``/metrics`` tells of distillation."""
        ledger = kept(self.stack, self.place.ledger())
        reader = LedgerReader(self.metrics.store_figures, ledger, self.offload)
        self.stack.push_async_callback(reader.close)
        return reader

    def shipping(self) -> list[Worker]:
        """From the outbox to Postgres, where there is one."""
        if not (self.first and self.place.shared):
            return []
        outbox = kept(self.stack, SqliteStore.open(self.place.path))
        postgres = kept(self.stack, self.place.repository())
        pool = self.stack.enter_context(ThreadPoolExecutor(1, "ship"))
        return [Shipper(outbox, postgres, self.metrics, pool)]
