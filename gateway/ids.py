"""Exchange ids: time-ordered, unique across processes, ours (an upstream's may collide)."""

from __future__ import annotations

import secrets
import time


def new_id() -> str:
    """48 bits of Unix milliseconds and 80 random bits, in hex: 32 characters that sort by time."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
