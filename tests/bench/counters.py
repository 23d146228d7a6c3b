"""``make bench-counters``: 5,000 known requests over four workers and five lives of theirs:
counters against the store's rows."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

from tests.faults.counters import lives

LIVES = 5
REQUESTS = 5_000


def main() -> None:
    """Run it; ends with an error where any figure differs."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="var") as folder:
        figures = asyncio.run(lives(Path(folder).resolve(), LIVES, REQUESTS // LIVES))
    told = {"requests": figures.asked, "stored": figures.stored, "cost_usd": figures.cost_usd,
            "teacher_tokens": figures.prompt_tokens + figures.completion_tokens,
            "lives": LIVES, "equal": True, "seconds": round(time.monotonic() - began)}  # fmt: skip
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
