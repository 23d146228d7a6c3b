"""Structured log lines: one JSON object each on standard error. Never bodies, never secrets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

Sink = Callable[[str, Mapping[str, Any]], None]
_sinks: list[Sink] = []


def log(event: str, **fields: Any) -> None:
    """Write one line: ``event``, Unix seconds, and the fields."""
    write(event, fields)
    for sink in _sinks:
        sink(event, fields)


def write(event: str, fields: Mapping[str, Any]) -> None:
    """To standard error alone."""
    line = orjson.dumps(
        {"ts": round(time.time(), 3), "event": event, **fields}, default=str
    ).decode()
    print(line, file=sys.stderr, flush=True)


def also(sink: Sink | None) -> None:
    """Tell every line to ``sink`` too; None: to nobody else any more."""
    _sinks[:] = [] if sink is None else [sink]
