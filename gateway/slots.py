"""An upstream's quota of calls at once: live traffic first, then draws, then distillation."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field
from enum import IntEnum


class Priority(IntEnum):
    """Who goes first when slots are short."""

    LIVE = 0
    DRAW = 1
    DISTILL = 2


@dataclass(slots=True)
class Slots:
    """``limit`` calls at once; None is no limit. Whatever is not live leaves one slot in ten (at
    least one, if there are two) free for what is."""

    limit: int | None
    used: int = 0
    _waiting: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    _number: int = 0

    def take(self, priority: Priority) -> bool:
        """A slot at once, if one is free and nobody goes before."""
        if not self._free(priority) or (self._waiting and self._others_first(priority)):
            return False
        self.used += 1
        return True

    async def acquire(self, priority: Priority) -> None:
        """Wait for a slot; first come, first served within a priority."""
        if self.take(priority):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number += 1
        heapq.heappush(self._waiting, (priority, self._number, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release()  # it was ours already
            raise

    def release(self) -> None:
        """Give a slot back."""
        self.used -= 1
        while self._waiting:
            priority, _, future = self._waiting[0]
            if not future.done():
                if not self._free(Priority(priority)):
                    return
                self.used += 1
                future.set_result(None)
            heapq.heappop(self._waiting)

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return sum(not future.done() for _, _, future in self._waiting)

    def _free(self, priority: Priority) -> bool:
        if self.limit is None:
            return True
        kept = 0 if priority is Priority.LIVE or self.limit < 2 else max(1, self.limit // 10)
        return self.used < self.limit - kept

    def _others_first(self, priority: Priority) -> bool:
        """Whether somebody waits who goes before a newcomer of this priority."""
        return any(p <= priority and not f.done() for p, _, f in self._waiting)
