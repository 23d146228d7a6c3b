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
from scipy.special import betaincc

from router.betting import effective_sample_size, spent_delta, weighted_risk_p_value
from router.comparator import Name

BOOTSTRAPS = 400
GRID_STEP = 0.005
"""Grid resolution: share of combine rows between neighbouring thresholds."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Risk <= ``alpha`` with probability >= 1 - ``delta`` for requests with score < ``tau``.

    ``status`` is ``certified`` or ``none``; with ``none`` nothing may be served and ``reason``
    says why. ``n`` and ``k`` are served calibration rows and disagreements among them;
    ``missing`` is how many more served rows without an error would be needed. ``delta`` is this
    certificate's own: of a promise that is renewed, ``promotion`` says the how-manieth share of
    the promise's delta it is (None: the promise is per version). ``method`` is ``binomial`` for
    rows of equal weight, ``betting`` where they keep weights; ``effective_rows`` is Kish's.
    ``groups`` counts distinct prompts, and ``bootstrap_upper`` is the 1 - delta quantile of the
    served risk over resampled groups: well above alpha, and few prompts decided.
    ``false_agree_rate`` is the comparator's where gold is known: the true risk is at most that
    much higher.
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
    promotion: int | None = None
    method: str = "binomial"
    effective_rows: float = 0.0
    bootstrap_upper: float | None = None
    false_agree_rate: float | None = None

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
    promotion: int | None = None

    @classmethod
    def promised(
        cls, alpha: float, delta: float, comparator: Name, promotion: int | None
    ) -> Budget:
        """The budget of one certificate: the whole delta where the promise is per version, the
        ``promotion``-th share of it where it is for all nights together."""
        share = delta if promotion is None else spent_delta(delta, promotion)
        return cls(alpha, share, comparator, promotion)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Rows that a certificate is taken on, shape (n,) each.

    ``scores`` are infinite where another rule sends to the teacher. ``weights`` are inverse draw
    probabilities; None where they are equal. ``groups`` names each row's prompt, ``slices`` its
    slice of traffic.
    """

    scores: Floats
    disagrees: Bools
    slices: Sequence[str]
    groups: Sequence[str]
    weights: Floats | None = None
    largest_weight: float = 1.0

    def p_value(self, tau: float, alpha: float) -> float:
        """P-value of 'the risk of what is served under ``tau`` is above ``alpha``'."""
        served = self.scores < tau
        if self.weights is None:
            return risk_p_value(int(served.sum()), int((served & self.disagrees).sum()), alpha)
        return weighted_risk_p_value(
            served, self.disagrees, self.weights, alpha, self.largest_weight
        )

    def coverage(self, tau: float) -> float:
        """Share of traffic served under ``tau``."""
        weights = np.ones(len(self.scores)) if self.weights is None else self.weights
        return float(weights[self.scores < tau].sum() / weights.sum())

    @property
    def effective_rows(self) -> float:
        """Kish's effective sample size."""
        if self.weights is None:
            return float(len(self.scores))
        return effective_sample_size(self.weights)


def rows_without_error(alpha: float, delta: float) -> int:
    """Smallest n with P(Bin(n, alpha) = 0) <= delta: 59 for .05 and .05."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def first_served(alpha: float, delta: float) -> float:
    """Calibration rows that the strictest threshold is to serve: 2 ln(1/delta) / alpha. Fewer, and
    an error or two in them end the walk before it began."""
    return 2.0 * math.log(1.0 / delta) / alpha


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
    start = first_served(budget.alpha, budget.delta) / calibration_rows
    shares = np.arange(start, 1.0 + GRID_STEP, GRID_STEP)
    ranks = np.ceil(shares * len(combine_scores)).astype(int)
    ranks = ranks[ranks <= len(finite)]
    grid: Floats = np.unique(np.nextafter(finite[ranks - 1], np.inf))
    return grid


def risk_p_value(n: int, k: int, alpha: float) -> float:
    """P(Bin(n, alpha) <= k): p-value of 'risk > alpha' after k disagreements in n served rows."""
    return float(betaincc(k + 1, n - k, alpha)) if k < n else 1.0


def certify(rows: Calibration, grid: Floats, budget: Budget) -> Certificate:
    """Walk the grid strict to loose and keep the last threshold before the first failed test.

    Args:
        rows: the calibration rows.
        grid: increasing thresholds from ``threshold_grid``.
        budget: alpha, delta, comparator.
    """
    best: tuple[float, float] | None = None
    for tau in grid:
        p_value = rows.p_value(float(tau), budget.alpha)
        if p_value > budget.delta:
            break
        best = (float(tau), p_value)
    shared: dict[str, Any] = {
        "alpha": budget.alpha,
        "delta": budget.delta,
        "comparator": budget.comparator,
        "promotion": budget.promotion,
        "rows": len(rows.scores),
        "mix": {name: list(rows.slices).count(name) for name in sorted(set(rows.slices))},
        "groups": len(set(rows.groups)),
        "method": "binomial" if rows.weights is None else "betting",
        "effective_rows": round(rows.effective_rows, 1),
    }
    if best is None:
        return _refused(rows, grid, budget, shared)
    tau, p_value = best
    served = rows.scores < tau
    return Certificate(
        "certified",
        tau=tau,
        n=int(served.sum()),
        k=int((served & rows.disagrees).sum()),
        p_value=p_value,
        coverage=rows.coverage(tau),
        bootstrap_upper=_bootstrap_upper(rows, served, budget.delta),
        **shared,
    )


def _refused(
    rows: Calibration, grid: Floats, budget: Budget, shared: dict[str, Any]
) -> Certificate:
    needed = rows_without_error(budget.alpha, budget.delta)
    served = rows.scores < grid[0] if len(grid) else np.zeros(len(rows.scores), dtype=bool)
    n, k = int(served.sum()), int((served & rows.disagrees).sum())
    missing = max(0, needed - n)
    reason = (
        f"too few calibration rows: the strictest threshold serves {n}, at least {needed} are "
        f"needed even without an error; {missing} missing"
        if missing
        else f"{k} of {n} served calibration rows disagree at the strictest threshold: risk is "
        f"not shown to be under {budget.alpha:g}"
    )
    return Certificate("none", n=n, k=k, missing=missing, reason=reason, **shared)


def _bootstrap_upper(rows: Calibration, served: Bools, delta: float) -> float:
    """1 - delta quantile of the served risk over resampled groups of equal prompts."""
    weights = np.ones(len(served)) if rows.weights is None else rows.weights
    names, group = np.unique(np.asarray(rows.groups), return_inverse=True)
    size = np.bincount(group, weights * served, minlength=len(names))
    lost = np.bincount(group, weights * (served & rows.disagrees), minlength=len(names))
    rng = np.random.default_rng(0)
    picks = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS)
    risks = (picks @ lost) / np.maximum(picks @ size, 1e-12)
    return round(float(np.quantile(risks, 1 - delta)), 5)
