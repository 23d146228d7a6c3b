"""What several workers cost each other: one SQLite file, one port; and what one of them takes.

``make bench-workers``: CPU per request, requests per second and memory at 1, 2 and 4 workers, in
turns; once for answers that only pass through (router off) and once for the demo's mixed traffic,
judged anew each time, the student's answers included. Load generator and upstream share the
machine's cores. These are the figures that ``deploy/SCALING.md`` reckons with.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deploy.demo.processes import Children, wait_ready
from tests.bench.__main__ import gateway
from tests.bench.load import Round, Side, load, memory_mib
from tests.bench.mock import mixed
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
        off: dict[str, Any] = {"student": None, "router": None}
        paths = {
            "router off": (off, [FAR]),
            "mixed, judged": ({"router": {"remember": 0}}, mixed()),
        }
        sides = []
        for path, (task, texts) in paths.items():
            for count in WORKERS:
                name_of = f"{path.split()[0].strip(',')}{count}"
                child, chat = gateway(children, name_of, Path(name), url, workers=count, **task)
                auth = {"authorization": f"Bearer {KEY}"}
                sides.append(Side(f"{path}, {count}", child, chat, texts, auth))
        time.sleep(5)  # every worker of a side is up, not only the first
        rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
        for number in range(ROUNDS + 1):
            for side in sides:
                measured = asyncio.run(load(side, REQUESTS, CONNECTIONS))
                if number:  # the first round warms up
                    rounds[side.name].append(measured)
        memory = {side.name: memory_mib(side.child) for side in sides}
    print(f"{'path, workers':20} {'CPU us':>8} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'MiB':>8}")
    for which, measured_rounds in rounds.items():
        columns = zip(
            *((r.cpu_us, r.rate, r.p50_ms, r.p99_ms) for r in measured_rounds), strict=True
        )
        figures = [*map(statistics.median, columns), memory[which]]
        print(f"{which:20}" + "".join(f" {figure:8.1f}" for figure in figures))


if __name__ == "__main__":
    main()
