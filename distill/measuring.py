"""What a student's answer costs: measured at a stated load, not typed in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.answers import StudentEndpoint, with_student_answers
from router.rows import Row

ROWS = 64
AT_ONCE = 8
ALONE = 16


@dataclass(frozen=True, slots=True)
class Speed:
    """One replica at ``AT_ONCE`` requests at once; ``alone_s`` is the mean of single
    ones, one after another."""

    requests_per_s: float
    tokens_per_s: float
    alone_s: float

    def to_json(self, price_per_hour: float) -> dict[str, float]:
        """With what 1,000 answers cost at that load, in USD."""
        return {
            "requests_per_s": round(self.requests_per_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "alone_ms": round(1000 * self.alone_s, 2),
            "usd_per_1000_at_full_load": price_per_hour / 3600 / self.requests_per_s * 1000,
        }


def measured(endpoint: StudentEndpoint, rows: Sequence[Row]) -> Speed | None:
    """Ask for answers that are known, to see how long they take; None without rows.

    Raises:
        FitError: the replica fails.
    """
    bare = [replace(row, student=None) for row in rows[:ROWS]]
    if not bare:
        return None
    started = time.perf_counter()
    found: list[Row] = asyncio.run(_asked(bare, replace(endpoint, concurrency=AT_ONCE)))
    took = time.perf_counter() - started
    tokens = sum(len(row.student.tokens) for row in found if row.student is not None)
    few = bare[:ALONE]
    begun = time.perf_counter()
    asyncio.run(_asked(few, replace(endpoint, concurrency=1)))
    alone = (time.perf_counter() - begun) / len(few)
    return Speed(len(found) / took, tokens / took, alone)


async def _asked(rows: Sequence[Row], endpoint: StudentEndpoint) -> Any:
    return await with_student_answers(rows, endpoint, lambda: None)
