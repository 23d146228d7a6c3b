"""A standardised logistic regression whose state is four arrays: fitted by scikit-learn, run in
numpy, because one prediction through scikit-learn costs more than the rest of a decision."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from router.errors import FitError

Floats = npt.NDArray[np.floating[Any]]


class Logistic:
    """P(y = 1 | x) with inputs scaled to zero mean and unit variance.

    ``c`` is the inverse L2 penalty, as in scikit-learn.
    """

    def __init__(self, c: float = 1.0) -> None:
        self.c = c

    def fit(self, features: Floats, outcome: npt.NDArray[np.bool_], weight: Floats) -> Self:
        """Learn from (n, d) features, boolean (n,) outcomes and positive (n,) weights.

        Raises:
            FitError: only one outcome occurs.
        """
        from sklearn.linear_model import LogisticRegression

        if outcome.all() or not outcome.any():
            raise FitError("both outcomes must occur to fit a logistic regression")
        self.mean_ = features.mean(axis=0).astype(np.float64)
        self.scale_ = np.maximum(features.std(axis=0), 1e-6).astype(np.float64)
        model = LogisticRegression(C=self.c, max_iter=1000)
        model.fit((features - self.mean_) / self.scale_, outcome, sample_weight=weight)
        self.coef_ = model.coef_[0].astype(np.float64)
        self.intercept_ = float(model.intercept_[0])
        return self

    @classmethod
    def from_state(cls, mean: Floats, scale: Floats, coef: Floats, intercept: float) -> Logistic:
        """Rebuild a fitted model from what an artefact stores."""
        model = cls()
        model.mean_ = np.asarray(mean, dtype=np.float64)
        model.scale_ = np.asarray(scale, dtype=np.float64)
        model.coef_ = np.asarray(coef, dtype=np.float64)
        model.intercept_ = intercept
        return model

    def contributions(self, features: Floats) -> Floats:
        """Additive parts of the log-odds, shape (m, d): what ``explain`` shows."""
        parts: Floats = (features - self.mean_) / self.scale_ * self.coef_
        return parts

    def decision_function(self, features: Floats) -> Floats:
        """Log-odds, shape (m,)."""
        total: Floats = self.contributions(features).sum(axis=-1) + self.intercept_
        return total

    def predict_proba(self, features: Floats) -> Floats:
        """P(y = 1), shape (m,); strictly increasing in the log-odds up to rounding."""
        odds = np.clip(self.decision_function(features), -36.0, 36.0)
        probability: Floats = 1.0 / (1.0 + np.exp(-odds))
        return probability
