"""How much is in flight, and the refusal of what would be too much: fast, before a body is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gateway.auth import Principal
from gateway.errors import GatewayError

AGAIN = {"retry-after": "1"}


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
