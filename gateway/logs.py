"""Structured log lines: one JSON object each on standard error. Never bodies, never secrets."""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson


def log(event: str, **fields: Any) -> None:
    """Write one line: ``event``, Unix seconds, and the fields."""
    line = orjson.dumps(
        {"ts": round(time.time(), 3), "event": event, **fields}, default=str
    ).decode()
    print(line, file=sys.stderr, flush=True)
