"""Counters that outlive the process: what was billed must not begin at zero with every restart.

An increment waits here until the capture thread commits it to the store's ``totals`` table, with
the exchange that it counts where there is one. A starting gateway takes its counters up from there.
Source for counters that are set anew: prometheus.io/docs/instrumenting/writing_clientlibs/#counter.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from gateway.errors import StoreError
from gateway.logs import log
from gateway.store.sqlite import SqliteStore

SEEDS = "seeds.json"


class Series(NamedTuple):
    """One series of a counter: the metric's name without ``_total``, and its label values as a
    JSON array."""

    metric: str
    labels: str

    @classmethod
    def of(cls, metric: str, values: Iterable[str]) -> Series:
        """From label values, in the order of the metric's labels."""
        return cls(metric, orjson.dumps(list(values)).decode())

    def values(self) -> list[str]:
        """The label values."""
        values: list[str] = orjson.loads(self.labels)
        return values


Counts = tuple[tuple[Series, float], ...]
"""Increments that are true once an exchange is stored."""


class Totals:
    """What is counted and not committed yet. Written by any thread, taken by the capture thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Series, float] = {}

    def add(self, series: Series, amount: float) -> None:
        """Count; committed within a second."""
        with self._lock:
            self._waiting[series] = self._waiting.get(series, 0.0) + amount

    def take(self) -> dict[Series, float]:
        """All that waits, now the caller's to commit."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return taken

    def put_back(self, taken: Mapping[Series, float]) -> None:
        """It could not be committed."""
        for series, amount in taken.items():
            self.add(series, amount)

    def __bool__(self) -> bool:
        return bool(self._waiting)


def leave_seeds(store: Path, folder: Path) -> None:
    """Before any worker counts: put the store's totals where the first of them finds them."""
    try:
        opened = SqliteStore.read_only(store)
    except StoreError:
        return  # the first start of all, or a worker will say what is wrong
    try:
        rows = opened.totals()
    except StoreError as error:
        log("totals_unreadable", error=str(error))
        return
    finally:
        opened.close()
    (folder / SEEDS).write_bytes(orjson.dumps(rows))


def taken_seeds(folder: Path) -> list[tuple[str, str, float]]:
    """The totals that ``leave_seeds`` left, for one worker only: whoever removes the file."""
    mine = folder / f"{SEEDS}.{os.getpid()}"
    try:
        (folder / SEEDS).rename(mine)
    except FileNotFoundError:
        return []
    rows: list[tuple[str, str, float]] = orjson.loads(mine.read_bytes())
    mine.unlink()
    return rows
