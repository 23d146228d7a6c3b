"""The second halves of draws: who works on which, and where what comes of it is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from gateway.capture import Capture
from gateway.errors import StoreError
from gateway.logs import log
from gateway.offload import Offload
from gateway.store.records import Draw, PendingDraw
from gateway.store.repository import Repository
from gateway.tasks import Tasks

LEASE_S = 180.0
"""Longer than a second answer takes with its pauses; after it another gateway may ask."""


class Halves(Protocol):
    """What a draw worker knows of the store."""

    async def claim(self, limit: int) -> list[PendingDraw]:
        """Draws that nobody else works on."""
        ...

    async def finish(self, exchange_id: str, draw: Draw, now: float) -> bool:
        """Keep how it went; False where that is not possible."""
        ...

    async def judgement(self, key: str) -> bool | None:
        """What the judge comparator said before."""
        ...

    async def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> bool:
        """Keep what it says."""
        ...


@dataclass(frozen=True, slots=True)
class OwnHalves:
    """Of a store that one gateway has for itself: the capture thread writes."""

    reader: Repository
    capture: Capture
    offload: Offload

    async def claim(self, limit: int) -> list[PendingDraw]:
        """The oldest: only the first worker asks."""
        return await self.offload.run(self.reader.pending_draws, limit)

    async def finish(self, exchange_id: str, draw: Draw, now: float) -> bool:
        """By the capture thread."""
        return await self.capture.finish_draw(exchange_id, draw, now)

    async def judgement(self, key: str) -> bool | None:
        """What the judge comparator said before."""
        return await self.offload.run(self.reader.judgement, key)

    async def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> bool:
        """By the capture thread."""
        return await self.capture.keep_judgement(key, task, agrees, now)


@dataclass(frozen=True, slots=True)
class SharedHalves:
    """Of a store that several gateways share: each claims what it works on for a while."""

    store: Repository
    offload: Offload
    tasks: Tasks

    async def claim(self, limit: int) -> list[PendingDraw]:
        """None while the store is away. Draws of a task that only another gateway knows, say one
        of the next configuration, are left to it: here they could only fail, and an audit counts
        that as a disagreement."""
        names = [task.name for task in self.tasks]
        claim = self.store.claim_draws
        try:
            return await self.offload.run(claim, limit, time.time(), LEASE_S, names)
        except StoreError:
            return []

    async def finish(self, exchange_id: str, draw: Draw, now: float) -> bool:
        """False while the store is away: the draw is asked for again."""
        try:
            await self.offload.run(self.store.finish_draw, exchange_id, draw, now)
        except StoreError as error:
            log("draw_not_kept", id=exchange_id, error=str(error))
            return False
        return True

    async def judgement(self, key: str) -> bool | None:
        """None while the store is away."""
        try:
            return await self.offload.run(self.store.judgement, key)
        except StoreError:
            return None

    async def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> bool:
        """False while the store is away."""
        try:
            await self.offload.run(self.store.keep_judgement, key, task, agrees, now)
        except StoreError:
            return False
        return True
