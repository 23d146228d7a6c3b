"""Ask the teacher about many things within a run's money, some at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence

from distill.night import Night
from distill.teacher import Answer, Chat, Teacher

AT_ONCE = 32


def in_parts(night: Night, chats: Sequence[Chat], usd: float = math.inf) -> Iterator[list[Answer]]:
    """Answers in the order of their questions, until ``usd`` or the day's money is spent: fewer
    than were asked for, then. A part is booked before it is given: whoever keeps it at once pays
    for nothing twice."""
    spent = 0.0
    for start in range(0, len(chats), AT_ONCE):
        if spent >= usd or night.money_left() <= 0:
            return
        answers = asyncio.run(_asked(night, chats[start : start + AT_ONCE]))
        cost = sum(answer.usd for answer in answers)
        night.spend(cost)
        spent += cost
        yield answers
        night.beat()


async def _asked(night: Night, chats: Sequence[Chat]) -> list[Answer]:
    async with Teacher(night.job, AT_ONCE) as teacher:
        return await teacher.ask_all(chats)
