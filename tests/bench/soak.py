"""Does memory stay flat? ``make bench-soak``: requests without end, bounded by number and by time.

Teacher and student answers in turns, every hundredth streamed; resident memory after each part.
The store grows on disk, as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from deploy.demo.processes import Children, wait_ready
from tests.bench.__main__ import gateway
from tests.bench.load import Side, load, memory_mib
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, IN_DOMAIN, KEY

PART = 50_000


def main() -> None:
    """Run it, and print one line per part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    chosen = parser.parse_args()
    until = time.monotonic() + chosen.minutes * 60
    with tempfile.TemporaryDirectory() as name, Children(Path(name) / "logs") as children:
        port = free_port()
        mock = children.start("mock", [sys.executable, "-m", "tests.bench.mock", str(port)], {})
        url = f"http://127.0.0.1:{port}"
        wait_ready(mock, f"{url}/", 20)
        child, chat = gateway(children, "soak", Path(name), url)
        side = Side("soak", child, chat, [FAR, IN_DOMAIN], {"authorization": f"Bearer {KEY}"})
        print(f"{'requests':>10} {'MiB':>8} {'req/s':>8}")
        asyncio.run(load(side, 2000, 32))
        print(f"{2000:10d} {memory_mib(child):8.1f}", flush=True)
        sent = 0
        while sent < chosen.requests and time.monotonic() < until:
            whole = asyncio.run(load(side, PART - PART // 100, 32))
            asyncio.run(load(side, PART // 100, 32, stream=True))
            sent += PART
            print(f"{sent:10d} {memory_mib(child):8.1f} {whole.rate:8.0f}", flush=True)


if __name__ == "__main__":
    main()
