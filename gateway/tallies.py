"""Counters and histograms of the hot path, counted in plain fields and told to the library before
anybody reads them.

The library takes a lock and several calls for each increment, so that any thread may make it; a
dozen of them were a tenth of what a request costs. These belong to one thread, the event loop's,
and to the only process of a gateway: where several share files, values have to be there at once.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

from prometheus_client import Counter, Histogram


class Tally(Protocol):
    """One series; ``settle`` tells the library what was counted since the last time."""

    def settle(self) -> None:
        """Afterwards nothing waits."""


class CounterTally:
    """A counter's series."""

    __slots__ = ("_series", "_waiting")

    def __init__(self, series: Counter) -> None:
        self._series = series
        self._waiting = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count; ``amount`` is not negative."""
        self._waiting += amount

    def settle(self) -> None:
        """See ``Tally``."""
        waiting, self._waiting = self._waiting, 0.0
        if waiting:
            self._series.inc(waiting)


class HistogramTally:
    """A histogram's series, with buckets up to each of ``bounds`` and one above them all."""

    __slots__ = ("_bounds", "_counts", "_series", "_sum")

    def __init__(self, series: Histogram, bounds: tuple[float, ...]) -> None:
        self._series = series
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def settle(self) -> None:
        """See ``Tally``. The library takes single values only; a value's fields it keeps to itself,
        so a test holds this to what its ``observe`` does."""
        series = self._series
        for bucket, count in zip(series._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        series._sum.inc(self._sum)
        self._counts = [0] * len(self._counts)
        self._sum = 0.0
