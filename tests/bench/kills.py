"""kill -9 of workers and of whole gateways under load: nothing that was acknowledged is lost.

``make bench-kills``: 200 kills of four workers over one SQLite file (KILLS= for another number);
with POSTGRES=1 that file is an outbox before a real Postgres, and everything must arrive there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from pathlib import Path

from gateway.store.records import Filter
from gateway.store.sqlite import SqliteStore
from tests.fakes.postgres import Postgres, postgres
from tests.fakes.process import gateway_process
from tests.fakes.rig import SECRETS
from tests.faults.kills import WORKERS, Toll, agreeing_upstreams, assert_kept, kill_often

URL = "POSTGRES_URL"


def main() -> None:
    """Kill, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--postgres", action="store_true")
    wanted = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="var"))).resolve()
        server = stack.enter_context(postgres()) if wanted.postgres else None
        toll = asyncio.run(_run(folder, wanted.kills, wanted.seed, server))
    print(
        f"{toll.kills} kills of {WORKERS} workers, {toll.whole} of them of all processes at once: "
        f"{len(toll.witness.ended)} answers acknowledged, all of them stored once and whole; "
        f"{toll.witness.cut} cut or refused. {len(toll.restarts_s)} starts after them took at most "
        f"{max(toll.restarts_s, default=0.0):.1f} s until they served."
    )


async def _run(folder: Path, kills: int, seed: int, server: Postgres | None) -> Toll:
    store = folder / "understudy.db"
    async with agreeing_upstreams(store) as data:
        if server is not None:
            SECRETS[URL] = server.url
            data["postgres"] = {"url_env": URL}
        toll = await kill_often(folder, data, kills, random.Random(seed))
        if server is not None:
            await _arrived(folder, data, server, toll)
    if server is None:
        assert_kept(store, toll.witness.ended)
    return toll


async def _arrived(folder: Path, data: dict[str, object], server: Postgres, toll: Toll) -> None:
    path = folder / "understudy.db"
    began = time.monotonic()
    async with gateway_process(folder, data):
        with contextlib.closing(SqliteStore.read_only(path)) as outbox:
            backlog = outbox.count(Filter())
            while outbox.count(Filter()):
                await asyncio.sleep(0.1)
    stored = [row[0] for row in server.execute("SELECT id FROM exchanges")]
    assert len(stored) == len(set(stored)), "something arrived twice"
    missing = toll.witness.ended - set(stored)
    assert not missing, f"{len(missing)} of {len(toll.witness.ended)} are lost"
    print(f"the last backlog of {backlog} was shipped {time.monotonic() - began:.1f} s after start")


if __name__ == "__main__":
    main()
