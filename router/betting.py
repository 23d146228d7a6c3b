"""Tests by betting: evidence that may be looked at after every label.

Waudby-Smith & Ramdas, *Estimating means of bounded random variables by betting*, arXiv
2010.09686. For 0/1 losses a bet against 'risk is m' is a likelihood ratio towards another risk q;
mixing over q with a Beta prior on one side of m has a closed form, so the whole evidence is a
function of two counts. By Ville's inequality a true 'risk is m' is rejected with probability at
most delta at *any* time, and the one-sided evidence stays valid when the risk varies on the
null's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincc, betaln

Floats = npt.NDArray[np.float64]

_TINY = 1e-300
"""Below this an incomplete beta function has underflowed: no evidence at all."""
_EDGE = 1e-9
BETS = 49


@dataclass(frozen=True, slots=True)
class RiskEvidence:
    """Mixture evidence about the mean of 0/1 losses.

    The prior over alternatives is Beta(1/2, 1/(2 alpha)), of mean about ``alpha``, fixed before any
    label is seen. Without an error it confirms alpha = .05, .02, .01 at 5 % after 72, 183 and 367
    labels (59, 149, 299 are the least that any test needs).
    """

    alpha: float

    def log_below(self, n: int, k: int, m: float) -> float:
        """Log-evidence that the risk is below ``m`` after ``k`` errors in ``n`` labels."""
        return self._log_evidence(n, k, m, betainc)

    def log_above(self, n: int, k: int, m: float) -> float:
        """Log-evidence that the risk is above ``m``."""
        return self._log_evidence(n, k, m, betaincc)

    def upper(self, n: int, k: int, delta: float) -> float:
        """Risk that is excluded from above at level ``delta``, in (0, 1]."""
        return self._bound(lambda m: self.log_below(n, k, m), n, k, delta, 1.0 - _EDGE)

    def lower(self, n: int, k: int, delta: float) -> float:
        """Risk that is excluded from below at level ``delta``, in [0, 1)."""
        return self._bound(lambda m: self.log_above(n, k, m), n, k, delta, _EDGE)

    def labels_to_confirm(
        self, n: int, k: int, delta: float, rate: float | None = None
    ) -> int | None:
        """Further labels until the upper bound is under alpha if errors come at ``rate``, by
        default the present one; None when they come too often for that ever to happen."""
        if rate is None:
            rate = k / n if n else 0.0
        if rate >= self.alpha:
            return None
        low, high = -1, 1
        while not self._confirmed(n, k, rate, high, delta):
            low, high = high, 2 * high
            if high > 10_000_000:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._confirmed(n, k, rate, middle, delta):
                high = middle
            else:
                low = middle
        return high

    def _confirmed(self, n: int, k: int, rate: float, more: int, delta: float) -> bool:
        return self._log_evidence(n + more, k + rate * more, self.alpha, betainc) >= -math.log(
            delta
        )

    def _log_evidence(self, n: float, k: float, m: float, mass: Any) -> float:
        a, b = 0.5, 0.5 / self.alpha
        after, before = float(mass(k + a, n - k + b, m)), float(mass(a, b, m))
        if after < _TINY or before < _TINY:
            return -math.inf
        ratio = math.log(after / before) + float(betaln(k + a, n - k + b) - betaln(a, b))
        return ratio - k * math.log(m) - (n - k) * math.log1p(-m)

    @staticmethod
    def _bound(evidence: Any, n: int, k: int, delta: float, edge: float) -> float:
        """Where the evidence crosses 1 / delta between the observed share and the edge."""
        from scipy.optimize import brentq

        needed = -math.log(delta)
        share = min(max(k / n if n else 0.5, _EDGE), 1.0 - _EDGE)
        if not n or evidence(edge) < needed:
            return round(edge)
        return float(brentq(lambda m: max(evidence(m), -1e6) - needed, share, edge, xtol=1e-7))


def weighted_risk_p_value(
    served: npt.NDArray[np.bool_],
    disagrees: npt.NDArray[np.bool_],
    weight: Floats,
    alpha: float,
    largest: float,
) -> float:
    """P-value of 'risk of served traffic >= alpha' from rows that keep unequal weights.

    The null is E[1{served} (L - alpha) / p] >= 0 over all traffic. A row moves a gambler's capital
    by the factor 1 + lambda 1{served} (alpha - L) w / largest, with w = 1/p; every bet has lambda <
    1 / (1 - alpha), so capital stays positive. The capital is averaged over a fixed grid of bets,
    and one over its largest value on the way is a p-value (Ville), larger than the exact
    binomial's where weights are equal.

    Args:
        served: whether the rule serves the row, shape (n,), rows in the order of drawing.
        disagrees: whether student and teacher disagree, shape (n,).
        weight: inverse draw probabilities, positive, shape (n,).
        alpha: largest risk, in (0, 1).
        largest: the largest weight that a row could have had: 1 / the floor of the draw rate.
    """
    gain = np.where(served, (alpha - disagrees) * weight / largest, 0.0)[served]
    if not len(gain):
        return 1.0
    bets = np.linspace(0.02, 0.98, BETS) / (1.0 - alpha)
    capital = np.logaddexp.reduce(np.cumsum(np.log1p(np.outer(bets, gain)), axis=1), axis=0)
    return float(min(1.0, np.exp(math.log(BETS) - capital.max())))


def spent_delta(delta: float, number: int) -> float:
    """The share of ``delta`` for the ``number``-th of an endless sequence: 6 delta / (pi k)^2."""
    return 6.0 * delta / (math.pi * number) ** 2


def effective_sample_size(weight: Floats) -> float:
    """Kish's effective number of equally weighted rows: (sum w)^2 / sum w^2."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0
