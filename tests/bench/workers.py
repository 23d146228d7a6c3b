"""What several workers cost each other: one SQLite file, one port.

``make bench-workers``: CPU per request and requests per second at 1, 2 and 4 workers, in turns.
Load generator and upstream share the machine's cores.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from deploy.demo.processes import Children, wait_ready
from tests.bench.__main__ import gateway
from tests.bench.load import Round, Side, load
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, KEY

WORKERS = (1, 2, 4)
ROUNDS = 5
REQUESTS = 3000
CONNECTIONS = 64


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, Children(Path(name) / "logs") as children:
        port = free_port()
        mock = children.start("mock", [sys.executable, "-m", "tests.bench.mock", str(port)], {})
        url = f"http://127.0.0.1:{port}"
        wait_ready(mock, f"{url}/", 20)
        sides = []
        for count in WORKERS:
            child, chat = gateway(
                children, f"w{count}", Path(name), url, workers=count, student=None, router=None
            )
            auth = {"authorization": f"Bearer {KEY}"}
            sides.append(Side(f"{count} workers", child, chat, [FAR], auth))
        time.sleep(3)  # every worker of a side is up, not only the first
        rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
        for number in range(ROUNDS + 1):
            for side in sides:
                measured = asyncio.run(load(side, REQUESTS, CONNECTIONS))
                if number:  # the first round warms up
                    rounds[side.name].append(measured)
    print(f"{'':12} {'CPU us':>8} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for name, measured_rounds in rounds.items():
        columns = zip(
            *((r.cpu_us, r.rate, r.p50_ms, r.p99_ms) for r in measured_rounds), strict=True
        )
        print(f"{name:12}" + "".join(f" {statistics.median(column):8.1f}" for column in columns))


if __name__ == "__main__":
    main()
