"""The gateway beside the gateway of another commit: what a change costs or saves.

``make bench-before REV=main~1``: both read the same configuration and artefacts and stand before
one mock upstream; rounds alternate. The other commit's files are laid out in a temporary folder,
and run with this environment's packages.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.demo.processes import Children, wait_ready
from tests.bench.__main__ import floor, gateway
from tests.bench.load import Round, Side, load
from tests.bench.mock import CHUNKS, LONG, LONG_CHUNKS, mixed
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, ROOT

STREAMS = {"streams": CHUNKS, "long-streams": LONG_CHUNKS}
"""Paths on which answers are streams, and the chunks of one."""
OFF: dict[str, Any] = {"student": None, "router": None}
PATHS: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    "off": (OFF, [FAR]),
    "out": ({}, [FAR]),
    "student": ({}, [IN_DOMAIN]),
    "mixed": ({}, None),
    "fresh": ({"router": {"remember": 0}}, None),
    "first": ({"router": {"remember": 0}}, [FAR]),
    "streams": (OFF, [FAR]),
    "long-streams": (OFF, [LONG]),
}
"""Router off; remembered and plainly out; remembered and served by the student; mixed traffic
remembered; mixed traffic judged anew; the static tier alone, anew; streams of two
lengths, router off."""


def laid_out(revision: str, folder: Path) -> Path:
    """The files of a commit."""
    packed = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rev", default="HEAD")
    parser.add_argument("--path", choices=PATHS, default="off")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--module", default="gateway.cli", help="tests.bench.nocapture: no store")
    parser.add_argument("--bare", action="store_true", help="with the bare pass-through")
    chosen = parser.parse_args()
    task, texts = PATHS[chosen.path]
    texts, streamed = texts or mixed(), chosen.path in STREAMS
    with tempfile.TemporaryDirectory() as name, Children(Path(name) / "logs") as children:
        port = free_port()
        mock = children.start("mock", [sys.executable, "-m", "tests.bench.mock", str(port)], {})
        url = f"http://127.0.0.1:{port}"
        wait_ready(mock, f"{url}/", 20)
        trees = {"now": ROOT, chosen.rev: laid_out(chosen.rev, Path(name) / "tree")}
        sides = [
            Side(
                label,
                *gateway(
                    children, f"gateway{number}", Path(name), url, chosen.module, tree=tree, **task
                ),
                texts,
                {"authorization": f"Bearer {KEY}"},
            )
            for number, (label, tree) in enumerate(trees.items())
        ]
        if chosen.bare:
            sides.append(replace(floor(children, url), texts=texts))
        rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
        for number in range(chosen.rounds + 1):
            for side in sides:
                measured = asyncio.run(
                    load(side, chosen.requests, chosen.connections, stream=streamed)
                )
                if number:  # the first round warms up
                    rounds[side.name].append(measured)
    print(f"{chosen.path}, {chosen.connections} connections"
          f"{f'; a stream has {STREAMS[chosen.path]} chunks' if streamed else ''}")  # fmt: skip
    for label, found in rounds.items():
        costs = sorted(r.cpu_us for r in found)
        ratio = statistics.median(
            r.cpu_us / n.cpu_us for r, n in zip(found, rounds["now"], strict=True)
        )
        print(f"{label:24} {statistics.median(costs):7.0f} us ({costs[0]:.0f} to {costs[-1]:.0f}), "
              f"{ratio:5.2f} x now; {statistics.median(r.rate for r in found):6.0f}/s, "
              f"p50 {statistics.median(r.p50_ms for r in found):.2f} ms, "
              f"p99 {statistics.median(r.p99_ms for r in found):.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
