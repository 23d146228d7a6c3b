"""Shares counts and revocations with the other processes over the store, once a second."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from gateway.allowance import SHARE_EVERY_S, Allowances, day_of, minute_of
from gateway.errors import StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.store.access import AccessStore, Uses


@dataclass(slots=True)
class Sharer:
    """A worker beside the requests. Without a store it goes on with what it knows."""

    allowances: Allowances
    store: AccessStore
    metrics: Metrics
    offload: Offload
    _forgotten: str = ""
    _lost: bool = False

    async def run(self) -> None:
        """Until cancelled; what was counted last is shared at the end."""
        try:
            while True:
                await asyncio.sleep(SHARE_EVERY_S)
                await self.share()
        finally:
            mine = self.allowances.take()
            if mine:
                self._exchanged(mine, time.time())

    async def share(self) -> None:
        """Once."""
        now = time.time()
        mine = self.allowances.take()
        found = await self.offload.run(self._exchanged, mine, now)
        if found is None:
            self.allowances.keep()
            return
        self.allowances.learn(*found)
        for name, usd in self.allowances.today(now).items():
            self.metrics.key_spent.labels(name).set(usd)

    def _exchanged(self, mine: Uses, now: float) -> tuple[Uses, frozenset[str]] | None:
        """Give and get; None where the store does not answer, and then nothing was given."""
        minute = minute_of(now)
        try:
            if minute != self._forgotten:
                self.store.forget(minute)
                self._forgotten = minute
            found = self.store.share(mine, [minute, day_of(now)])
        except StoreError as error:
            if not self._lost:  # once, not every second
                log("usage_not_shared", error=str(error))
            self._lost = True
            return None
        self._lost = False
        return found
