"""Counters and histograms of the hot path, counted in plain fields and told to the library before
anybody reads them.

The library takes a lock and several calls for each increment, so that any thread may make it; a
dozen of them were a tenth of what a request costs. These belong to one thread, the event loop's,
and to the only process of a gateway: where several share files, values have to be there at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from gateway.totals import Series, Totals

C = TypeVar("C")


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


class Counting(Protocol):
    """What takes increments: a series of the library's, or a tally."""

    def inc(self, amount: float = 1.0) -> None:
        """Count."""


class Observing(Protocol):
    """What takes values: a series of the library's, or a tally."""

    def observe(self, amount: float) -> None:
        """Count one."""


class Labelled(Generic[C]):
    """Children by label values: the library's own lookup takes 2 µs, ten times per request."""

    def __init__(self, metric: MetricWrapperBase, make: Callable[..., C]) -> None:
        """``make`` is given label values, and makes their child."""
        self.metric = metric
        self._make = make
        self._children: dict[tuple[str, ...], C] = {}

    def labels(self, *values: str) -> C:
        """The child with these label values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make(*values)
        return child


class LastingChild:
    """One series of a counter that outlives the process."""

    __slots__ = ("_child", "_totals", "series")

    def __init__(self, child: Counting, series: Series, totals: Totals) -> None:
        self._child, self.series, self._totals = child, series, totals

    def inc(self, amount: float = 1.0) -> None:
        """Count, here and in the store."""
        self._child.inc(amount)
        self._totals.add(self.series, amount)

    def show(self, amount: float = 1.0) -> None:
        """Count here what the store has counted."""
        self._child.inc(amount)


class Lasting(Labelled[LastingChild]):
    """A counter whose values a restart takes up again (``Totals``)."""

    def __init__(
        self, metric: Counter, name: str, arity: int, totals: Totals, make: Callable[..., Counting]
    ) -> None:
        """``arity`` is its number of labels; see ``Labelled`` for ``make``."""

        def child(*values: str) -> LastingChild:
            return LastingChild(make(*values), Series.of(name, values), totals)

        super().__init__(metric, child)
        self.arity = arity
