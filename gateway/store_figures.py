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

LONGEST_S = 2.0


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
        agreement = GaugeMetricFamily(
            "understudy_distill_agreement_ratio",
            "Share of test rows on which the version that serves agreed with the teacher when it "
            "was last measured, by slice: the frequent answers of a closed set, `other`, or `all`.",
            labels=["task", "slice"],
        )
        for (task, name), share in self.latest.agreement.items():
            agreement.add_metric([task, name], share)
        return [runs, last, examples, agreement]


@dataclass(slots=True)
class LedgerReader:
    """Reads them before each scrape. Several workers answer scrapes in turn: figures that one of
    them had from before would be a counter that falls, which is a restart to Prometheus. Where the
    store does not answer there are none."""

    figures: StoreFigures
    ledger: Ledger
    offload: Offload
    _asking: asyncio.Task[Figures] | None = None

    async def look(self) -> None:
        """Waits ``LONGEST_S`` for the store."""
        asked = self._asking
        if asked is None:
            asked = self._asking = asyncio.create_task(self.offload.run(self.ledger.figures))
        await asyncio.wait({asked}, timeout=LONGEST_S)
        if not asked.done():
            self.figures.latest = Figures()
        elif self._asking is asked:  # of several scrapes at once, the first to hear
            self._asking = None
            self.figures.latest = self._heard(asked)

    @staticmethod
    def _heard(asked: asyncio.Task[Figures]) -> Figures:
        try:
            return asked.result()
        except StoreError as error:
            log("ledger_unreadable", error=str(error))
            return Figures()

    async def close(self) -> None:
        """Await what is still under way."""
        if self._asking is not None:
            await asyncio.gather(self._asking, return_exceptions=True)
