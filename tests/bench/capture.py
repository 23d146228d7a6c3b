"""What the promise costs: ``make bench-capture``.

1. A teacher answer's added time at 10, 100 and 1,000 captures a second, each rate in turns with
   capture and without it, by one worker and by two; commits per fsync from the metrics.
2. How many captures a second the stores take, sustained: SQLite, Postgres, and the way from one to
   the other.
Load generator, upstream, gateway and Postgres share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from deploy.demo.processes import Children, wait_ready
from gateway.metrics import Metrics
from gateway.shipping import BATCH, Shipper
from gateway.store.migrating import upgrade
from gateway.store.postgres import PostgresStore
from gateway.store.records import Attempt, Exchange
from gateway.store.sqlite import SqliteStore
from gateway.writer import MAX_BATCH
from tests.bench.__main__ import gateway
from tests.bench.load import Side, paced
from tests.fakes.answers import completion
from tests.fakes.postgres import postgres
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, KEY
from tests.unit.test_store import EXCHANGE

RATES = (10, 100, 1000)
SECONDS = 6.0
ROUNDS = 5
SUSTAINED_S = 20.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="var") as name:
        folder = Path(name).resolve()
        stores(folder)
        answers(folder, chosen.rounds)


def answers(folder: Path, rounds: int) -> None:
    """The added time of an answer."""
    with Children(folder / "logs") as children:
        port = free_port()
        mock = children.start("mock", [sys.executable, "-m", "tests.bench.mock", str(port)], {})
        url = f"http://127.0.0.1:{port}"
        wait_ready(mock, f"{url}/", 20)
        sides = {
            (workers, kept): Side(
                f"{workers} {kept}",
                *gateway(children, f"{kept}{workers}", folder, url, module, workers,
                         student=None, router=None),
                [FAR], {"authorization": f"Bearer {KEY}"},
            )
            for workers, kept, module in (
                (1, "kept", "gateway.cli"),
                (2, "kept", "gateway.cli"),
                (1, "not kept", "tests.bench.nocapture"),  # knows one process
            )
        }  # fmt: skip
        time.sleep(2)
        print(f"{'captures/s':>10} {'workers':>8} {'p50 kept':>9} {'not':>7} {'added':>7} "
              f"{'p99 kept':>9} {'not':>7} {'per fsync':>10}")  # fmt: skip
        for workers in (1, 2):
            for rate in RATES:
                _line(sides, workers, rate, rounds)


def _line(sides: dict[tuple[int, str], Side], workers: int, rate: int, rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"kept": [], "not kept": []}
    before = _commits(sides[workers, "kept"])
    for _ in range(rounds):
        for kept, values in found.items():
            side = sides[workers if kept == "kept" else 1, kept]
            values.append(asyncio.run(paced(side, rate, SECONDS)))
    after = _commits(sides[workers, "kept"])
    grouped = (after[0] - before[0]) / max(after[1] - before[1], 1)
    (p50, p99), (bare50, bare99) = (
        [statistics.median(column) for column in zip(*found[kept], strict=True)] for kept in found
    )
    print(f"{rate:10} {workers:8} {p50:9.2f} {bare50:7.2f} {p50 - bare50:7.2f} "
          f"{p99:9.2f} {bare99:7.2f} {grouped:10.2f}")  # fmt: skip


def _commits(side: Side) -> tuple[float, float]:
    """Exchanges stored, and transactions that stored them."""
    address = side.url.removesuffix("/v1/chat/completions")
    with urllib.request.urlopen(f"{address}/metrics") as response:
        text = response.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    stored = values.get('understudy_fallback_records_total{state="stored"}', 0)
    return float(stored), float(values.get("understudy_capture_commit_seconds_count", 0))


def exchanges() -> Iterator[Exchange]:
    """Exchanges of about 2 KB without end."""
    chat = {"model": "m", "messages": [
        {"role": "system", "content": "You sort requests of bank customers. " * 20},
        {"role": "user", "content": "what is the apr on my credit card " * 10},
    ]}  # fmt: skip
    attempt = Attempt("t/teacher", "teacher", "ok", 200, 230, 12, 0.0004, 900.0)
    base = replace(EXCHANGE, request=chat, answer=completion("apr " * 60), attempts=(attempt,),
                   prefix=None, draw=None)  # fmt: skip
    number = 0
    while True:
        number += 1
        # As ids of the gateway are: in the order of time.
        yield replace(base, id=f"{time.time_ns() // 1_000_000:012x}{number:020x}",
                      created_at=time.time())  # fmt: skip


def stores(folder: Path) -> None:
    """How many a second each store takes."""
    source = exchanges()
    sqlite = SqliteStore.open(folder / "sustained.db")
    _sustained("SQLite", lambda: sqlite.put([next(source) for _ in range(MAX_BATCH)]))
    with postgres() as server:
        upgrade(server.url)
        store = PostgresStore(server.url)
        _sustained("Postgres", lambda: store.put([next(source) for _ in range(BATCH)]))
        outbox = SqliteStore.open(folder / "outbox.db")
        with ThreadPoolExecutor(1) as pool:
            shipper = Shipper(outbox, store, Metrics(), pool)

            def there() -> int:
                outbox.put([next(source) for _ in range(BATCH)])
                return shipper.ship() or 0

            _sustained("SQLite, shipped to Postgres, freed", there)
        store.close()
    sqlite.close()


def _sustained(name: str, put: Callable[[], int]) -> None:
    """By one thread, for a while; the slowest second beside the mean."""
    per_second: list[int] = []
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SUSTAINED_S:
        while len(per_second) <= int(elapsed):
            per_second.append(0)
        per_second[-1] += put()
    mean = sum(per_second) / (time.perf_counter() - began)
    print(f"{name}: {mean:.0f} exchanges/s over {SUSTAINED_S:.0f} s, "
          f"{min(per_second[:-1])} in the slowest second")  # fmt: skip


if __name__ == "__main__":
    main()
