"""Millions of exchanges: ``make bench-store ROWS=5000000``.

Fills SQLite and Postgres, and times what the gateway and its users ask of them when they are full.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.store.audits import AuditStore, Claim
from gateway.store.feedback import FeedbackStore
from gateway.store.keeping import Keeping
from gateway.store.migrating import upgrade
from gateway.store.place import Place
from gateway.store.records import Draw, Exchange, Filter
from gateway.store.repository import Repository
from tests.bench.capture import exchanges
from tests.fakes.postgres import postgres

BATCH = 1000
DRAWN = 50
"""One exchange in so many is drawn."""
TIMES = 15


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(dir="var") as name:
        path = Path(name).resolve() / "x.db"
        _measure("SQLite", Place(path), rows)
        for file in path.parent.iterdir():
            file.unlink()
        with postgres() as server:
            upgrade(server.url)
            server.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
            server.execute("SELECT pg_reload_conf()")
            _measure("Postgres", Place(path, server.url), rows)


def _measure(name: str, place: Place, rows: int) -> None:
    with contextlib.closing(place.repository()) as store:
        rates = _filled(store, rows)
        tenth = rows / 10
        print(
            f"{name}: {rows} exchanges at {rows / sum(rates):.0f}/s; the first tenth at "
            f"{tenth / rates[0]:.0f}/s, the last at {tenth / rates[-1]:.0f}/s"
        )
        with contextlib.closing(place.audits()) as audits:
            _asked(store, audits, FeedbackStore(store))
        with contextlib.closing(place.keeping()) as keeping:
            _timed("retention, 200 exchanges", lambda: _retire(keeping))


def _filled(store: Repository, rows: int) -> list[float]:
    """Seconds of each tenth."""
    source, seconds = exchanges(), []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(rows // 10 // BATCH):
            store.put([_varied(n, e) for n, e in zip(range(BATCH), source, strict=False)])
        seconds.append(time.perf_counter() - began)
    return seconds


_count = itertools.count()


def _varied(_: int, exchange: Exchange) -> Exchange:
    number = next(_count)
    served = "student" if number % 3 else "teacher"
    drawn = number % DRAWN == 0
    return replace(
        exchange, task=f"t{number % 5}", principal=f"p{number % 20}", served_by=served,
        reason="in_distribution" if served == "student" else "ood", router="v1",
        end_user=f"u{number % 100_000}", score=0.1 if served == "student" else None, ood_score=0.3,
        draw_p=1 / DRAWN, draw=Draw(1 / DRAWN, "teacher") if drawn else None,
    )  # fmt: skip


def _asked(store: Repository, audits: AuditStore, feedback: FeedbackStore) -> None:
    claim = Claim("t1", "v1", 0.05, 0.05)
    newest = next(store.read(Filter(newest_first=True, limit=1)))
    last = audits.last_draw("t1")
    sql = "SELECT count(*) FROM draws WHERE task = ? AND seq > ?"
    questions: dict[str, Callable[[], Any]] = {
        "one exchange by id": lambda: list(store.read(Filter(ids=(newest.id,)))),
        "newest 20 of a task": lambda: list(
            store.read(Filter(task="t1", newest_first=True, limit=20))
        ),
        "16 pending draws claimed": lambda: store.claim_draws(16, time.time(), 0.0, ["t1"]),
        "audit's pace": lambda: audits.pace(claim, 0.0, time.time()),
        "last 100 draws": lambda: store.connection.execute(sql, ("t1", last - 500)).fetchone(),
        "feedback's exchange": lambda: feedback.task_of(newest.id, newest.principal),
        "an end user's exchanges": lambda: Keeping(store).asked_by("u7"),
        "batch of 256 more": lambda: store.put(list(itertools.islice(_more, 256))),
    }
    for name, question in questions.items():
        _timed(name, question)
    began = time.perf_counter()
    count = store.count(Filter(task="t1", served_by="teacher"))
    print(f"  count of one task's fallbacks ({count}): {time.perf_counter() - began:.2f} s")


_more = exchanges()


def _retire(keeping: Keeping) -> int:
    return keeping.delete_before("t2", time.time())


def _timed(name: str, question: Callable[[], Any]) -> None:
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        question()
        times.append((time.perf_counter() - began) * 1000)
    print(f"  {name}: median {statistics.median(times):.2f} ms, max {max(times):.1f}")


if __name__ == "__main__":
    main()
