"""How many retries a teacher may get: a share of its requests, so that an outage is not answered
with a multiple of its load.

A token bucket as in Finagle's RetryBudget: each request deposits ``share``, each retry takes one.
"""

from __future__ import annotations

from dataclasses import dataclass

RESERVE = 10.0
"""Retries that a quiet minute allows; over n requests at most ``RESERVE + share * n`` happen."""


@dataclass(slots=True)
class RetryBudget:
    """Pure: no clock."""

    share: float
    _tokens: float = RESERVE

    def asked(self) -> None:
        """A request began."""
        self._tokens = min(RESERVE, self._tokens + self.share)

    def take(self) -> bool:
        """Whether a retry may go out."""
        # Tenths do not add up to one in binary: a hair's breadth must not cost a retry.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True
