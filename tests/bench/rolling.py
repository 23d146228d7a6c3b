"""``make bench-rolling``: two gateways over one Postgres: how soon a decision reaches both, and
what rolling restarts under load cost."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from gateway.store.migrating import upgrade
from tests.fakes.postgres import Postgres, postgres
from tests.faults.pair import NAMES, Tally, close_gate, pair, promote, revoke


async def measured(folder: Path, server: Postgres, rounds: int) -> dict[str, Any]:
    """Decisions, each so often; then as many rolling restarts, users at work all the while."""
    took: dict[str, list[float]] = {"promotion": [], "key revoked": [], "gate closed": []}
    async with pair(folder, server) as made:
        await promote(made, made.versions[0])
        for number in range(rounds):
            took["promotion"].append(await promote(made, made.versions[(number + 1) % 2]))
            took["key revoked"].append(await revoke(made))
            took["gate closed"].append(await close_gate(made))
        async with made.under_load() as tally:
            for _ in range(rounds):
                for name in NAMES:
                    await made.stop(name)
                    await made.start(name)
                    await asyncio.sleep(1)
        lost = tally.ended - set(await made.shipped())
    return {
        "seconds": {
            what: {"median": statistics.median(times), "longest": max(times)}
            for what, times in took.items()
        },
        "restarts": 2 * rounds,
        **_of(tally),
        "not in Postgres": len(lost),
    }


def _of(tally: Tally) -> dict[str, Any]:
    return {
        "answers": len(tally.ended),
        "served_by": dict(tally.served_by),
        "failed": dict(tally.wrong),
    }


def main() -> None:
    """Run it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=10)
    rounds = options.parse_args().rounds
    with postgres() as server, tempfile.TemporaryDirectory(dir="var") as folder:
        server.fresh()
        upgrade(server.url)
        print(json.dumps(asyncio.run(measured(Path(folder).resolve(), server, rounds)), indent=2))


if __name__ == "__main__":
    main()
