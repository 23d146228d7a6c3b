"""The certificate: a threshold that keeps risk under alpha with probability 1 - delta.

Learn then Test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing. Everything
else (features, combination, out-of-distribution cut, the grid) is fixed beforehand on other rows,
so the certificate covers the whole deployed rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from router.comparator import Name

GRID_STEP = 0.005
"""Grid resolution: share of combine rows between neighbouring thresholds."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Risk <= ``alpha`` with probability >= 1 - ``delta`` for requests with score < ``tau``.

    ``status`` is ``certified`` or ``none``; with ``none`` nothing may be served and ``reason``
    says why. ``n`` and ``k`` are served calibration rows and disagreements among them;
    ``missing`` is how many more served rows without an error would be needed.
    """

    status: str
    alpha: float
    delta: float
    comparator: Name
    tau: float | None = None
    n: int = 0
    k: int = 0
    p_value: float | None = None
    rows: int = 0
    coverage: float = 0.0
    mix: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    missing: int = 0
    reason: str | None = None

    @property
    def certified(self) -> bool:
        """Whether the student may serve under this certificate."""
        return self.status == "certified" and self.tau is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the operator promised: risk at most ``alpha``, failure probability ``delta``."""

    alpha: float
    delta: float
    comparator: Name


def rows_without_error(alpha: float, delta: float) -> int:
    """Smallest n with P(Bin(n, alpha) = 0) <= delta: 59 for .05 and .05."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def threshold_grid(combine_scores: Floats, budget: Budget, calibration_rows: int) -> Floats:
    """Thresholds from strict to loose, fixed on the combine split.

    Args:
        combine_scores: score of every combine row, shape (n,); +inf where a rule before the
            student (template, out-of-distribution cut) already sent the row to the teacher.
        budget: alpha and delta of the promise.
        calibration_rows: size of the calibration split; decides the start.

    Returns:
        Increasing thresholds. The first is expected to serve 2 ln(1/delta) / alpha calibration
        rows: started stricter, the first test fails for want of rows and nothing is ever served.
    """
    finite = np.sort(combine_scores[np.isfinite(combine_scores)])
    if not len(finite) or not calibration_rows:
        return np.zeros(0)
    start = 2.0 * math.log(1.0 / budget.delta) / budget.alpha / calibration_rows
    shares = np.arange(start, 1.0 + GRID_STEP, GRID_STEP)
    ranks = np.ceil(shares * len(combine_scores)).astype(int)
    ranks = ranks[ranks <= len(finite)]
    grid: Floats = np.unique(np.nextafter(finite[ranks - 1], np.inf))
    return grid


def risk_p_value(n: int, k: int, alpha: float) -> float:
    """P(Bin(n, alpha) <= k): p-value of 'risk > alpha' after k disagreements in n served rows."""
    return float(binom.cdf(k, n, alpha)) if n else 1.0


def certify(
    scores: Floats,
    disagrees: Bools,
    grid: Floats,
    budget: Budget,
    *,
    slices: Sequence[str],
    groups: int,
) -> Certificate:
    """Walk the grid strict to loose and keep the last threshold before the first failed test.

    Args:
        scores: calibration scores, shape (n,); +inf where another rule sends to the teacher.
        disagrees: whether student and teacher disagree, shape (n,).
        grid: increasing thresholds from ``threshold_grid``.
        budget: alpha, delta, comparator.
        slices: slice name of each calibration row, for the recorded mix.
        groups: number of distinct prompts among the rows.
    """
    best: tuple[float, int, int, float] | None = None
    for tau in grid:
        served = scores < tau
        n, k = int(served.sum()), int((served & disagrees).sum())
        p_value = risk_p_value(n, k, budget.alpha)
        if p_value > budget.delta:
            break
        best = (float(tau), n, k, p_value)
    mix = {name: slices.count(name) for name in sorted(set(slices))}
    shared: dict[str, Any] = {
        "alpha": budget.alpha,
        "delta": budget.delta,
        "comparator": budget.comparator,
        "rows": len(scores),
        "mix": mix,
        "groups": groups,
    }
    if best is None:
        return _refused(scores, disagrees, grid, budget, shared)
    tau, n, k, p_value = best
    return Certificate(
        "certified", tau=tau, n=n, k=k, p_value=p_value, coverage=n / len(scores), **shared
    )


def _refused(
    scores: Floats, disagrees: Bools, grid: Floats, budget: Budget, shared: dict[str, Any]
) -> Certificate:
    needed = rows_without_error(budget.alpha, budget.delta)
    served = scores < grid[0] if len(grid) else np.zeros(len(scores), dtype=bool)
    n, k = int(served.sum()), int((served & disagrees).sum())
    missing = max(0, needed - n)
    reason = (
        f"too few calibration rows: the strictest threshold serves {n}, at least {needed} are "
        f"needed even without an error; {missing} missing"
        if missing
        else f"{k} of {n} served calibration rows disagree at the strictest threshold: risk is "
        f"not shown to be under {budget.alpha:g}"
    )
    return Certificate("none", n=n, k=k, missing=missing, reason=reason, **shared)
