"""What the request path tells of itself to whoever traces it; nothing of OpenTelemetry is imported
here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.store.records import Attempt
    from gateway.turn import Turn


class Trace(Protocol):
    """One traced request."""

    parent: str
    """``traceparent`` for upstreams (w3.org/TR/trace-context)."""
    id: str
    """The trace's id, in hex, for log lines."""

    def stage(self, name: str, seconds: float) -> None:
        """The gateway's own work, just done."""
        ...

    def call(self, attempt: Attempt) -> None:
        """An upstream call, just ended."""
        ...

    def end(self, turn: Turn, status: int) -> None:
        """The request has its answer, or 499 is its client gone."""
        ...


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, turn: Turn, headers: Mapping[str, str]) -> Trace | None:
        """The trace of a request; None where it is not sampled."""
        ...

    async def close(self) -> None:
        """Send what waits."""
        ...
