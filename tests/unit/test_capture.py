"""What the event loop knows of the writer: exchanges that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from gateway.capture import Capture
from gateway.metrics import Metrics
from gateway.settings import Outbox
from gateway.store.records import Exchange, Filter
from gateway.store.sqlite import SqliteStore
from tests.unit.test_store import EXCHANGE


@asynccontextmanager
async def capturing(path: Path, metrics: Metrics | None = None) -> AsyncIterator[Capture]:
    """A capture over a new store, closed at the end."""
    capture = Capture(SqliteStore.open(path), Outbox(), metrics or Metrics())
    capture.start()
    try:
        yield capture
    finally:
        await capture.close()


def stored(path: Path) -> set[str]:
    """Ids on disk."""
    with closing(SqliteStore.read_only(path)) as store:
        return {e.id for e in store.read(Filter())}


async def test_clients_that_leave_together_do_not_stop_the_loop(tmp_path: Path) -> None:
    """Between two exchanges that are made, the loop gets to everybody else."""
    happened: list[str] = []

    def made(name: str) -> Callable[[], Exchange]:
        def make() -> Exchange:
            happened.append("made")
            return replace(EXCHANGE, id=name)

        return make

    names = {f"n{number}" for number in range(20)}
    async with capturing(tmp_path / "x.db") as capture:
        for name in names:
            capture.put_soon(made(name))
        assert capture.queued == len(names)
        while happened.count("made") < len(names):
            happened.append("else")
            await asyncio.sleep(0)
    assert ("made", "made") not in pairwise(happened)
    assert stored(tmp_path / "x.db") == names


async def test_what_was_not_made_yet_is_stored_at_the_end(tmp_path: Path) -> None:
    async with capturing(tmp_path / "x.db") as capture:
        for name in "abc":
            capture.put_soon(lambda name=name: replace(EXCHANGE, id=name))  # type: ignore[misc]
    assert stored(tmp_path / "x.db") == set("abc")


async def test_one_that_cannot_be_made_costs_no_other(tmp_path: Path) -> None:
    def fails() -> Exchange:
        raise ValueError

    metrics = Metrics()
    async with capturing(tmp_path / "x.db", metrics) as capture:
        for make in (fails, lambda: EXCHANGE, fails):
            capture.put_soon(make)
        await asyncio.sleep(0)
    assert stored(tmp_path / "x.db") == {EXCHANGE.id}
    lost = metrics.registry.get_sample_value("understudy_fallback_records_total", {"state": "lost"})
    assert lost == 2
