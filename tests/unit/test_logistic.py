"""The logistic regression equals scikit-learn's where it is free, and keeps signs where told."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from router.errors import FitError
from router.logistic import Logistic


def sample(seed: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Two collinear features and a useless one."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=400)
    features = np.column_stack([first, first + 0.1 * rng.normal(size=400), rng.normal(size=400)])
    return features, rng.random(400) < 1 / (1 + np.exp(-2 * first))


def test_it_equals_scikit_learn_without_signs() -> None:
    features, outcome = sample()
    weight = np.linspace(0.5, 2.0, 400)
    ours = Logistic(c=0.7).fit(features, outcome, weight)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    theirs = LogisticRegression(C=0.7, tol=1e-8, max_iter=5000)
    theirs.fit(scaled, outcome, sample_weight=weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_[0], atol=2e-3)
    np.testing.assert_allclose(
        [ours.probability(row) for row in features],
        theirs.predict_proba(scaled)[:, 1],
        atol=1e-3,
    )


def test_signs_are_kept_and_the_score_is_monotone_beyond_the_data() -> None:
    features, outcome = sample()
    model = Logistic().fit(features, outcome, np.ones(400), signs=(1, 1, -1))
    assert (model.coef_ * np.array([1, 1, -1]) >= 0).all()
    base = np.zeros(3)
    for column, sign in enumerate((1, 1, -1)):
        steps = np.array([base + sign * far * np.eye(3)[column] for far in (0, 5, 50, 500)])
        found = [model.probability(row) for row in steps]
        assert (np.diff(found) >= 0).all()
        odds = np.clip(model.decision_function(steps), -36.0, 36.0)
        np.testing.assert_allclose(found, expit(odds), rtol=1e-12)


def test_contributions_add_up_to_the_log_odds() -> None:
    features, outcome = sample()
    model = Logistic().fit(features, outcome, np.ones(400))
    total = model.contributions(features).sum(axis=1) + model.intercept_
    np.testing.assert_allclose(total, model.decision_function(features))


def test_one_sided_outcomes_are_refused() -> None:
    features, _ = sample()
    with pytest.raises(FitError):
        Logistic().fit(features, np.zeros(400, bool), np.ones(400))
