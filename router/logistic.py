"""A standardised logistic regression whose coefficients may be held to a known direction.

scikit-learn's has no sign constraints; where there are none, the two give the same coefficients
(a test compares them). Its state is four arrays, and it runs in numpy, because one prediction
through scikit-learn costs more than the rest of a decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from router.errors import FitError

Floats = npt.NDArray[np.floating[Any]]

_BOUNDS: Mapping[int, tuple[float | None, float | None]] = {
    -1: (None, 0.0),
    0: (None, None),
    1: (0.0, None),
}


class Logistic:
    """P(y = 1 | x) with inputs scaled to zero mean and unit variance.

    ``c`` is the inverse L2 penalty, as in scikit-learn.
    """

    def __init__(self, c: float = 1.0) -> None:
        self.c = c

    def fit(
        self,
        features: Floats,
        outcome: npt.NDArray[np.bool_],
        weight: Floats,
        signs: Sequence[int] | None = None,
    ) -> Self:
        """Learn from (n, d) features, boolean (n,) outcomes and positive (n,) weights.

        ``signs`` fixes the direction of each coefficient (1, -1, or 0 for either). Confidence
        features are collinear, and a free fit gives some the wrong sign: right on the traffic that
        was seen, absurd on an answer less confident than any of it.

        Raises:
            FitError: only one outcome occurs.
        """
        from scipy.optimize import minimize

        if outcome.all() or not outcome.any():
            raise FitError("both outcomes must occur to fit a logistic regression")
        mean = features.mean(axis=0).astype(np.float64)
        spread = np.maximum(features.std(axis=0), 1e-6).astype(np.float64)
        scaled = (features - mean) / spread
        found = minimize(
            _loss_and_gradient,
            np.zeros(features.shape[1] + 1),
            args=(scaled, np.where(outcome, 1.0, -1.0), weight, self.c),
            jac=True,
            bounds=[*(_BOUNDS[sign] for sign in signs or [0] * features.shape[1]), (None, None)],
            method="L-BFGS-B",
            options={"maxiter": 2000},
        )
        return self._with(mean, spread, np.asarray(found.x[:-1]), float(found.x[-1]))

    @classmethod
    def from_state(cls, mean: Floats, scale: Floats, coef: Floats, intercept: float) -> Logistic:
        """Rebuild a fitted model from what an artefact stores."""
        return cls()._with(mean, scale, coef, intercept)

    def _with(self, mean: Floats, scale: Floats, coef: Floats, intercept: float) -> Self:
        self.mean_, self.scale_, self.coef_ = (
            np.asarray(values, dtype=np.float64) for values in (mean, scale, coef)
        )
        self.intercept_ = intercept
        rows = zip(self.mean_, self.scale_, self.coef_, strict=True)
        self._terms = [(float(mean), float(scale), float(coef)) for mean, scale, coef in rows]
        return self

    def tensors(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The state as an artefact stores it, under ``name.``."""
        return {
            f"{name}.mean": self.mean_,
            f"{name}.scale": self.scale_,
            f"{name}.coef": self.coef_,
            f"{name}.intercept": np.array([self.intercept_]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], name: str) -> Logistic:
        """Rebuild from what ``tensors`` gave.

        Raises:
            KeyError: a part is missing.
        """
        mean, scale, coef = (tensors[f"{name}.{part}"] for part in ("mean", "scale", "coef"))
        return cls.from_state(mean, scale, coef, float(tensors[f"{name}.intercept"][0]))

    def contributions(self, features: Floats) -> Floats:
        """Additive parts of the log-odds, shape (m, d): what ``explain`` shows."""
        parts: Floats = (features - self.mean_) / self.scale_ * self.coef_
        return parts

    def decision_function(self, features: Floats) -> Floats:
        """Log-odds, shape (m,)."""
        total: Floats = self.contributions(features).sum(axis=-1) + self.intercept_
        return total

    def probability(self, features: Sequence[float]) -> float:
        """P(y = 1) of one row; strictly increasing in the log-odds up to rounding.

        Of a dozen numbers Python makes a sum sooner than numpy begins one.
        """
        odds = self.intercept_
        for value, (mean, scale, coef) in zip(features, self._terms, strict=True):
            odds += (value - mean) / scale * coef
        return 1.0 / (1.0 + math.exp(-min(max(odds, -36.0), 36.0)))


def _loss_and_gradient(
    parameters: Floats, features: Floats, side: Floats, weight: Floats, c: float
) -> tuple[float, Floats]:
    """Weighted log-loss with scikit-learn's L2 term, and its gradient; ``side`` is 1 or -1."""
    coef, intercept = parameters[:-1], parameters[-1]
    margin = side * (features @ coef + intercept)
    loss = c * float(weight @ np.logaddexp(0.0, -margin)) + 0.5 * float(coef @ coef)
    pull = -c * weight * side * expit(-margin)
    return loss, np.append(features.T @ pull + coef, pull.sum())
