"""Server-sent events, as a pure parser: bytes in, events out, split anywhere.

Source: WHATWG HTML, section 9.2 (event stream interpretation); only ``data`` matters here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

CONTENT_TYPE = {"content-type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 8 << 20


class EventTooLarge(Exception):
    """An upstream sent an event that would not end."""


@dataclass(slots=True)
class EventParser:
    """Feeds on byte chunks and gives the data of each complete event.

    Lines end in LF, CRLF or CR, also when the pair is cut between two chunks.
    """

    _pending: bytearray = field(default_factory=bytearray)
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0
    _skip_lf: bool = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Data of every event that ``chunk`` completes, in order.

        Raises:
            EventTooLarge: an event grows beyond 8 MiB.
        """
        if not chunk:
            return []
        if not self.within and (whole := _whole(chunk)):
            return whole
        skip, self._skip_lf = self._skip_lf and chunk[:1] == b"\n", chunk[-1:] == b"\r"
        if skip:
            chunk = chunk[1:]
        self._pending += chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if len(self._pending) + self._size > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event exceeds {MAX_EVENT_BYTES} bytes")
        *lines, rest = self._pending.split(b"\n")
        self._pending = bytearray(rest)
        return [event for line in lines if (event := self._line(bytes(line))) is not None]

    @property
    def within(self) -> bool:
        """Whether an event has begun that is not complete."""
        return bool(self._pending or self._data or self._skip_lf)

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data) if data else None
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
        return None


def alone(event: bytes) -> bytes | None:
    """The data of an event, without the empty line that ends it, if that is all it has, in one
    line."""
    if event.startswith(b"data: ") and b"\n" not in event and b"\r" not in event:
        return event[6:]
    return None


def _whole(chunk: bytes) -> list[bytes]:
    """The data of what a chunk usually is: one whole event, or some, of a line each."""
    if not chunk.endswith(b"\n\n"):
        return []
    events = chunk[:-2].split(b"\n\n")
    found = [data for event in events if (data := alone(event)) is not None]
    return found if len(found) == len(events) else []


def encode(obj: object) -> bytes:
    """One ``data`` event holding an object as JSON."""
    return b"data: " + orjson.dumps(obj) + b"\n\n"
