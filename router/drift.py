"""Does today's traffic still look like the calibration rows? No labels are needed.

Scores are binned by the calibration split's own quantiles, and a block of fresh scores is compared
with it by a chi-squared test of homogeneity, which allows for both sides being samples. The size
of a change is the population stability index (PSI): sum of (q - p) ln(q / p) over the bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

BINS = 10
BLOCK = 500
"""Judged requests that are compared at a time."""
FALSE_ALARM = 1e-4
"""Probability that a block of unchanged traffic is called drifting."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reference:
    """Histogram of calibration scores: ``len(counts)`` bins between increasing ``edges``."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def fitted(cls, scores: Floats) -> Self:
        """Bins of about equal counts; fewer where scores repeat."""
        quantiles = np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1])
        edges = tuple(map(float, np.unique(quantiles)))
        return cls(edges, tuple(map(int, _counts(scores, edges))))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave."""
        edges = tuple(float(edge) for edge in value["edges"])
        counts = tuple(int(count) for count in value["counts"])
        if len(counts) != len(edges) + 1 or list(edges) != sorted(edges) or sum(counts) < 1:
            raise ValueError("reference: edges and counts do not fit each other")
        return cls(edges, counts)


@dataclass(frozen=True, slots=True)
class Drift:
    """One comparison: PSI (0.1 is noticeable, 0.25 large) and the test's p-value."""

    psi: float
    p_value: float

    @property
    def drifting(self) -> bool:
        """Whether the block is unlikely to come from the calibration rows' traffic."""
        return self.p_value < FALSE_ALARM


def compare(reference: Reference, scores: Floats) -> Drift:
    """Compare a block of fresh scores, shape (n,), with the reference."""
    expected = np.array(reference.counts)
    found = _counts(scores, reference.edges)
    used = expected + found > 0
    p, q = _shares(expected), _shares(found)
    psi = float(((q - p) * np.log(q / p)).sum())
    if used.sum() < 2:
        return Drift(psi, 1.0)
    return Drift(psi, _p_value(np.vstack([expected, found])[:, used]))


def _p_value(observed: npt.NDArray[np.int64]) -> float:
    """Pearson's chi-squared test of two rows of counts, with Yates' correction for two columns:
    ``scipy.stats.chi2_contingency``, whose import takes a second of a serving gateway."""
    rows, columns = observed.sum(axis=1), observed.sum(axis=0)
    expected = np.outer(rows, columns) / observed.sum()
    off = np.abs(observed - expected)
    freedom = len(columns) - 1
    if freedom == 1:
        off -= np.minimum(0.5, off)
    return float(chdtrc(freedom, (off**2 / expected).sum()))


def _counts(scores: Floats, edges: tuple[float, ...]) -> npt.NDArray[np.int64]:
    bins = np.searchsorted(np.array(edges), scores, side="right")
    return np.bincount(bins, minlength=len(edges) + 1)


def _shares(counts: npt.NDArray[np.int64]) -> Floats:
    """Half a count more in each bin, so that an empty one has a finite logarithm."""
    shares: Floats = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    return shares
