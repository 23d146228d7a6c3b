"""What a key may use: requests and tokens per minute, money per day.

Minutes and days are those of Unix time, so that every process over one store counts in the same
windows. A request is let in by what was used before it; what it costs is known at its end. So a
limit can be overshot by what is in flight at that moment, and with several processes by what the
others let in since they last shared their counts (``SHARE_EVERY_S``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.auth import Principal
from gateway.errors import GatewayError
from gateway.store.access import Use, Uses, Window

SHARE_EVERY_S = 1.0
_MINUTE_S = 60
_DAY_S = 86_400
_NOTHING = Use()


def minute_of(now: float) -> Window:
    """The minute that a time lies in."""
    return f"m{int(now // _MINUTE_S)}"


def day_of(now: float) -> Window:
    """The UTC day that a time lies in."""
    return f"d{int(now // _DAY_S)}"


def start_of_day(now: float) -> float:
    """Unix seconds at which the UTC day of a time began."""
    return now - now % _DAY_S


def seconds_left_in_day(now: float) -> int:
    """Until the UTC day ends, rounded up."""
    return math.ceil(_DAY_S - now % _DAY_S)


@dataclass(slots=True)
class Allowances:
    """Counts of every principal. Pure: time, in Unix seconds, is passed in.

    ``_mine`` is what this process has counted and not shared yet, ``_taken`` what is being shared
    now, ``_shared`` what all have shared.
    """

    revoked: frozenset[str] = frozenset()
    _mine: dict[tuple[str, Window], Use] = field(default_factory=dict)
    _taken: Uses = field(default_factory=dict)
    _shared: Uses = field(default_factory=dict)

    def admit(self, principal: Principal, now: float) -> None:
        """Count a request in.

        Raises:
            GatewayError: ``invalid_api_key`` (revoked), ``rate_limit_exceeded`` or
                ``insufficient_quota``; nothing is counted then.
        """
        self.check_revoked(principal)
        name = principal.name
        if not principal.limited:
            return
        minute, day = minute_of(now), day_of(now)
        used = self.used(name, minute)
        if principal.requests_per_minute is not None:
            _check(used.requests, principal.requests_per_minute, "requests", now)
        if principal.tokens_per_minute is not None:
            _check(used.tokens, principal.tokens_per_minute, "tokens", now)
        budget = principal.usd_per_day
        if budget is not None and self.used(name, day).usd >= budget:
            left = seconds_left_in_day(now)
            raise GatewayError(
                "insufficient_quota",
                f"This key's budget of {budget:g} USD for today is used up; the day ends in "
                f"{left} s (UTC).",
                headers={"retry-after": str(left), "x-should-retry": "false"},
            )
        self._add(name, minute, Use(requests=1))

    def check_revoked(self, principal: Principal) -> None:
        """Keep out whose keys are revoked.

        Raises:
            GatewayError: ``invalid_api_key``.
        """
        if principal.name in self.revoked:
            raise GatewayError(
                "invalid_api_key", "This API key was revoked.",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip

    def spent(self, name: str, tokens: int, usd: float, now: float) -> None:
        """Book what an upstream call on a principal's behalf cost."""
        self._add(name, minute_of(now), Use(tokens=tokens))
        self._add(name, day_of(now), Use(tokens=tokens, usd=usd))

    def used(self, name: str, window: Window) -> Use:
        """By every process, as far as is known here."""
        key = name, window
        known = self._shared.get(key, _NOTHING) + self._taken.get(key, _NOTHING)
        return known + self._mine.get(key, _NOTHING)

    def take(self) -> Uses:
        """What was counted since the last time, to be shared; then ``learn`` or ``keep``."""
        self._taken, self._mine = self._mine, {}
        return self._taken

    def learn(self, shared: Uses, revoked: frozenset[str]) -> None:
        """What the store holds now, what was taken from here included."""
        self._shared, self._taken, self.revoked = shared, {}, revoked

    def keep(self) -> None:
        """What could not be shared is this process's own still."""
        taken, self._taken = self._taken, {}
        for (name, window), use in taken.items():
            self._add(name, window, use)

    def today(self, now: float) -> Mapping[str, float]:
        """USD of the day by principal."""
        day = day_of(now)
        keys = (*self._shared, *self._taken, *self._mine)
        names = {name for name, window in keys if window == day}
        return {name: self.used(name, day).usd for name in names}

    def _add(self, name: str, window: Window, use: Use) -> None:
        key = name, window
        self._mine[key] = self._mine.get(key, _NOTHING) + use


def _check(used: int, limit: int, what: str, now: float) -> None:
    if used >= limit:
        raise GatewayError(
            "rate_limit_exceeded",
            f"This key may use {limit} {what} per minute, and has.",
            headers={"retry-after": str(math.ceil(_MINUTE_S - now % _MINUTE_S))},
        )
