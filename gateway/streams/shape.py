"""What every answer stream does, whichever endpoint it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.errors import GatewayError
from gateway.sse import encode

Parse = Callable[[bytes], Mapping[str, Any] | None]
"""Gives the event that some bytes are; None where they are none."""


class AnswerStream(Protocol):
    """One answer on its way to the client. Pure: events in, bytes out; no clock, no socket.

    ``learn`` and ``take`` raise one of ``gateway.upstream.MALFORMED`` on an event that has another
    shape than the API's.
    """

    @property
    def finished(self) -> bool:
        """Whether the whole answer has been learned."""
        ...

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """What the upstream counted, once it has said so."""
        ...

    def failed(self, event: Mapping[str, Any]) -> bool:
        """Whether the upstream reports a failure by this event; a later end is void then."""
        ...

    def learn(self, event: Mapping[str, Any]) -> None:
        """Merge an event into the whole answer."""
        ...

    def take(self, event: Mapping[str, Any], raw: bytes = b"") -> bytes:
        """What may go out for an event; ``raw`` is the event as it came. From the answer's end on
        everything is held back."""
        ...

    def at_once(self, raw: bytes, parsed: Parse) -> bytes:
        """What ``learn`` and ``take`` would give, both done, for an event that only adds text to
        what has begun; nothing, and nothing done, for any other. ``raw`` is the event as it came,
        without the empty line that ends it."""
        ...

    def answer(self) -> dict[str, Any]:
        """The whole answer, or what there is of it."""
        ...

    def close(self, note: Mapping[str, Any] | None) -> bytes:
        """What was held back, once the exchange is committed; ``note`` explains the verdict."""
        ...

    def fail(self, error: GatewayError) -> bytes:
        """An honest end for an answer that cannot be completed."""
        ...


def is_error(event: Mapping[str, Any]) -> bool:
    """An in-band error of the chat and completion APIs; vLLM has two forms of it."""
    return event.get("error") is not None or event.get("object") == "error"


def error_event(error: GatewayError) -> bytes:
    """The error object as an event; no ``[DONE]`` may follow."""
    return encode(error.body())
