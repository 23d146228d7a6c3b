"""What the reference teacher can be made to do wrong, and how slow and dear it is."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

STREAM_FAULTS = ("none", "cut", "stall", "error", "no_done", "malformed")


@dataclass(frozen=True, slots=True)
class Knobs:
    """Rates are shares in [0, 1]; times in milliseconds; prices in USD per million tokens."""

    latency_ms: float = 250.0
    latency_jitter: float = 0.3
    token_ms: float = 2.0
    price_input: float = 2.5
    price_output: float = 10.0
    noise: float = 0.0
    error_rate: float = 0.0
    error_status: int = 500
    retry_after_s: int | None = None
    stream_fault: str = "none"
    stream_fault_rate: float = 1.0
    seed: int = 0

    def changed(self, values: dict[str, Any]) -> Knobs:
        """The same knobs with some turned.

        Raises:
            ValueError: an unknown knob, or a value out of range.
        """
        unknown = set(values) - set(self.__slots__)
        if unknown:
            raise ValueError(
                f"no knob {sorted(unknown)[0]!r}; there are {', '.join(self.__slots__)}"
            )
        turned = replace(self, **values)
        for name in ("noise", "error_rate", "stream_fault_rate", "latency_jitter"):
            if not 0 <= float(getattr(turned, name)) <= 1:
                raise ValueError(f"{name} must be between 0 and 1")
        if turned.stream_fault not in STREAM_FAULTS:
            raise ValueError(f"stream_fault is one of {', '.join(STREAM_FAULTS)}")
        if turned.latency_ms < 0 or turned.token_ms < 0:
            raise ValueError("times must not be negative")
        return turned

    def think_s(self, rng: random.Random) -> float:
        """Seconds to the first token."""
        return (
            self.latency_ms / 1000 * rng.uniform(1 - self.latency_jitter, 1 + self.latency_jitter)
        )
