"""The sentence encoder's word on a prompt, off the event loop."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gateway.books import Books
from gateway.judging import Judge
from gateway.offload import Offload
from gateway.turn import Turn
from router.judge import Prejudgement


@dataclass(frozen=True, slots=True)
class Refiner:
    """Runs what takes a millisecond or more in threads of its own."""

    offload: Offload
    books: Books

    async def prejudge(self, turn: Turn, judge: Judge) -> Prejudgement:
        """The static tier on a long prompt."""
        request = turn.request
        return await self.offload.run(
            judge.prejudge, request.messages, request.tools, request.response_format
        )

    async def refine(self, turn: Turn, judge: Judge, pre: Prejudgement) -> Prejudgement:
        """Ask the sentence encoder."""
        started = time.perf_counter()
        quick = judge.quick(pre)
        refined = judge.refine(pre) if quick else await self.offload.run(judge.refine, pre)
        self.books.spent(turn, "refine", started)
        return refined
