"""Comparators applied to rows, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.binomial import upper_bound
from router.comparator import Embedder, Name, comparator
from router.errors import FitError
from router.rows import Row

RowComparator = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """A share of rows with its 95 % upper confidence bound (Clopper & Pearson)."""

    errors: int
    rows: int

    @property
    def rate(self) -> float:
        """The observed share."""
        return self.errors / self.rows

    @property
    def upper(self) -> float:
        """One-sided 95 % upper bound."""
        return upper_bound(self.errors, self.rows, 0.05)


def row_comparator(name: Name, embedder: Embedder | None) -> RowComparator:
    """Agreement of a row's two answers. ``Row.agrees`` goes before the comparator's own word: the
    judge comparator's is asked for elsewhere.

    Raises:
        FitError: when a row needs a comparator that cannot be applied here.
    """

    def agrees(row: Row) -> bool:
        if row.agrees is not None:
            return row.agrees
        if row.student is None or row.completion is None:
            raise FitError("a row without both answers cannot be compared")
        return comparator(name, embedder)(row.student.text, row.completion)

    return agrees


def false_agree(rows: Sequence[Row], agrees: RowComparator) -> ErrorRate | None:
    """Share of rows on which the comparator says 'agree' and gold says otherwise; None without
    gold. True risk is at most the risk by the comparator plus this."""
    known = [row for row in rows if row.equivalent is not None]
    if not known:
        return None
    return ErrorRate(sum(agrees(row) and not row.equivalent for row in known), len(known))


def false_disagree(rows: Sequence[Row], agrees: RowComparator) -> ErrorRate | None:
    """The other error: coverage lost to a comparator that is too strict."""
    known = [row for row in rows if row.equivalent is not None]
    if not known:
        return None
    return ErrorRate(sum(not agrees(row) and bool(row.equivalent) for row in known), len(known))
