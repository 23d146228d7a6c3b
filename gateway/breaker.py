"""Circuit breaker of one upstream: a pure state machine; the clock is passed in.

Nygard, *Release It!*: closed until ``threshold`` failures in a row, then open for a pause that
doubles with each failed probe, then half open for one probe.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Whether an upstream may be called. Times are monotonic seconds."""

    threshold: int = 5
    pause_s: float = 2.0
    longest_pause_s: float = 30.0
    _failures: int = 0
    _open_until: float | None = None
    _pause: float = 0.0
    _probing: bool = False

    @property
    def closed(self) -> bool:
        """Whether calls flow without restriction."""
        return self._open_until is None

    def allow(self, now: float) -> bool:
        """Ask before a call; half open lets exactly one through."""
        if self._open_until is None:
            return True
        if now < self._open_until or self._probing:
            return False
        self._probing = True
        return True

    def rests_s(self, now: float) -> float:
        """Seconds until a call may be tried again; 0 when one may be now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def succeeded(self) -> None:
        """The call gave an answer."""
        self._failures, self._open_until, self._pause, self._probing = 0, None, 0.0, False

    def failed(self, now: float) -> None:
        """The call failed for a reason that lies with the upstream."""
        self._failures += 1
        if self._probing or self._failures >= self.threshold:
            self._pause = min(max(self.pause_s, self._pause * 2), self.longest_pause_s)
            self._open_until = now + self._pause
        self._probing = False

    def abandoned(self) -> None:
        """The call was given up by us: it says nothing about the upstream."""
        self._probing = False
