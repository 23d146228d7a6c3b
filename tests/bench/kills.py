"""kill -9 of workers and of whole gateways under load: nothing that was acknowledged is lost.

``make bench-kills``: 200 kills of four workers over one SQLite file (KILLS= for another number).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from pathlib import Path

from tests.faults.kills import WORKERS, Toll, agreeing_upstreams, assert_kept, kill_often


def main() -> None:
    """Kill, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261125)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="var") as name:
        toll = asyncio.run(_run(Path(name).resolve(), wanted.kills, wanted.seed))
    print(
        f"{toll.kills} kills of {WORKERS} workers, {toll.whole} of them of all processes at once: "
        f"{len(toll.witness.ended)} answers acknowledged, all of them stored once and whole; "
        f"{toll.witness.cut} cut or refused. {len(toll.restarts_s)} starts took at most "
        f"{max(toll.restarts_s):.1f} s until they served."
    )


async def _run(folder: Path, kills: int, seed: int) -> Toll:
    store = folder / "understudy.db"
    async with agreeing_upstreams(store) as data:
        toll = await kill_often(folder, data, kills, random.Random(seed))
    assert_kept(store, toll.witness.ended)
    return toll


if __name__ == "__main__":
    main()
