"""How much is in flight and how late the event loop is, and the refusal of what would be too much:
fast, before a body is read, so that answers under way keep their pace."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.auth import Principal
from gateway.errors import GatewayError
from gateway.metrics import Metrics
from gateway.upstream import monotonic

AGAIN = {"retry-after": "1"}


PERIOD_S = 0.1


@dataclass(slots=True)
class LagMeter:
    """How late the event loop wakes whoever sleeps on it: all work of this process, and the
    machine's other load, show here. ``sample`` is called as often: for gauges of what changes with
    every request."""

    metrics: Metrics
    sample: Callable[[], None] = lambda: None
    lag_s: float = 0.0
    _before_s: float = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = monotonic() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            self._before_s, self.lag_s = self.lag_s, monotonic() - due
            self.metrics.loop_lag.set(self.lag_s)
            self.sample()

    def check(self, limit_s: float) -> None:
        """Refuse new work while the loop is too late, twice in a row: a machine's hiccup is over
        when it shows.

        Raises:
            GatewayError: ``overloaded``.
        """
        if min(self.lag_s, self._before_s) > limit_s:
            raise GatewayError(
                "overloaded",
                f"The gateway is {self.lag_s:.1f} s behind; try again soon, or another replica.",
                headers=dict(AGAIN),
            )


@dataclass(slots=True)
class Load:
    """Requests in flight, in all and by principal. Pure: limits are passed in."""

    total: int = 0
    _by_principal: Counter[str] = field(default_factory=Counter)

    def enter(self, principal: Principal, limit: int) -> None:
        """Take a request in.

        Raises:
            GatewayError: ``overloaded`` or ``too_many_requests``; nothing is counted then.
        """
        if self.total >= limit:
            raise GatewayError(
                "overloaded", f"{limit} requests are in flight; try again soon.", headers=AGAIN
            )
        own = principal.max_in_flight
        if own is not None and self._by_principal[principal.name] >= own:
            raise GatewayError(
                "too_many_requests",
                f"This key has {own} requests in flight, as many as it may have.",
                headers=AGAIN,
            )
        self.total += 1
        self._by_principal[principal.name] += 1

    def leave(self, principal: Principal) -> None:
        """A request is over."""
        self.total -= 1
        self._by_principal[principal.name] -= 1
        if not self._by_principal[principal.name]:
            del self._by_principal[principal.name]
