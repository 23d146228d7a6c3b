"""Metrics that the store knows: exact over restarts, workers and gateways, since nobody counts them
a second time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.errors import StoreError
from gateway.logs import log
from gateway.offload import Offload
from gateway.store.ledger import Figures, Ledger

EVERY_S = 10.0


@dataclass(slots=True, eq=False)
class StoreFigures(Collector):
    """What the ledger of distillation said last."""

    latest: Figures = field(default_factory=Figures)

    def collect(self) -> Iterable[Metric]:
        """One family for each of the figures."""
        runs = CounterMetricFamily(
            "understudy_distill_runs",
            "Distillation runs by how they ended: promoted, refused, waiting, skipped, failed or "
            "cancelled; as the store keeps them.",
            labels=["task", "outcome"],
        )
        for (task, outcome), count in self.latest.runs.items():
            runs.add_metric([task, outcome], count)
        last = GaugeMetricFamily(
            "understudy_distill_last_success_timestamp_seconds",
            "When a distillation run last came to a decision (promoted, refused, waiting or "
            "skipped), in Unix seconds.",
            labels=["task"],
        )
        for task, at in self.latest.last_success.items():
            last.add_metric([task], at)
        examples = GaugeMetricFamily(
            "understudy_distill_examples",
            "Examples of the latest run by their state: train, dev, combine, calibrate, test; "
            "held_back, quarantined or stale.",
            labels=["task", "state"],
        )
        for (task, state), count in self.latest.examples.items():
            examples.add_metric([task, state], count)
        return [runs, last, examples]


@dataclass(frozen=True, slots=True)
class LedgerReader:
    """Reads them again now and then."""

    figures: StoreFigures
    ledger: Ledger
    offload: Offload

    async def run(self) -> None:
        """Until cancelled. While the store is away the figures stay."""
        while True:
            try:
                self.figures.latest = await self.offload.run(self.ledger.figures)
            except StoreError as error:
                log("ledger_unreadable", error=str(error))
            await asyncio.sleep(EVERY_S)
