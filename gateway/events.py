"""Parsed events of an upstream's stream, each awaited with a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import orjson

from gateway.clock import within
from gateway.sse import EventParser, EventTooLarge, alone
from gateway.streams.shape import Parse
from gateway.upstream import UpstreamError, UpstreamResponse


class End(Enum):
    """Ways in which a stream stops."""

    DONE = "done"
    EOF = "eof"


Event = Mapping[str, Any] | End


class Events:
    """Pulls events one at a time. After ``End`` only ``End.EOF`` follows.

    What comes while the next event is awaited is shown to ``direct`` first, event by event, with a
    way to parse one. As many as that says are none of those that are pulled.
    """

    def __init__(self, response: UpstreamResponse) -> None:
        self.direct: Callable[[list[bytes], Parse], int] | None = None
        self._response = response
        self._parser = EventParser()
        self._ready: deque[Event] = deque()
        self._over = False
        self._shown: tuple[bytes, Event] | None = None
        """The event that ``direct`` had parsed last, as it came and parsed."""

    @property
    def waiting(self) -> bool:
        """Whether the next event is here already."""
        return bool(self._ready)

    async def next(self) -> Event:
        """The next event.

        Raises:
            UpstreamError: ``cut``, ``timeout`` or ``malformed``.
        """
        while not self._ready:
            if self._over:
                return End.EOF
            chunk = await self._response.some(self._take)
            if not chunk:
                self._over = True
                return End.EOF
            self._parse(chunk)
        return self.now()

    def now(self) -> Event:
        """The next event, which is ``waiting``."""
        event = self._ready.popleft()
        self._over = self._over or event is End.DONE
        return event

    async def next_within(self, seconds: float) -> Event:
        """The next event; ``End.EOF`` if none comes in time: for what follows a finish reason."""
        try:
            with within(seconds):
                return await self.next()
        except TimeoutError:
            self._over = True
            return End.EOF

    def _take(self, chunk: bytes) -> bytes:
        if self.direct is None or self._parser.within:
            return chunk
        events = chunk.split(_END)
        rest = events.pop()
        taken = self.direct(events, self._parsed)
        return rest if taken == len(events) else _END.join((*events[taken:], rest))

    def _parsed(self, raw: bytes) -> Mapping[str, Any] | None:
        if (data := alone(raw)) is None:
            return None
        try:
            event = _object(data)
        except UpstreamError:
            return None  # [DONE], or what _parse will complain of
        self._shown = raw, event
        return event

    def _parse(self, chunk: bytes) -> None:
        if self._shown is not None and self._shown[0] == chunk[:-2] and chunk.endswith(_END):
            self._ready.append(self._shown[1])
            return
        try:
            events = self._parser.feed(chunk)
        except EventTooLarge as error:
            raise UpstreamError("malformed", str(error)) from error
        for data in events:
            self._ready.append(End.DONE if data.strip() == b"[DONE]" else _object(data))


_END = b"\n\n"
"""Of an event, where its upstream ends lines as nearly every one does."""


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamError("malformed", "an event is not JSON") from error
    if not isinstance(value, dict):
        raise UpstreamError("malformed", "an event is not an object")
    return value
