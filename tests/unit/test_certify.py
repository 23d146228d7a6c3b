"""The certificate keeps its promise, says what is missing, and never starts too strict."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import bdtr

from router.certify import Budget, certify, risk_p_value, rows_without_error, threshold_grid

BUDGET = Budget(0.05, 0.05, "label")


def traffic(
    rng: np.random.Generator, rows: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores and disagreements; the true risk at threshold t is known in closed form: the
    disagreement probability at score s is s squared."""
    scores = rng.random(rows)
    return scores, rng.random(rows) < scores**2


def true_risk(tau: float) -> float:
    """E[s^2 | s < tau] for uniform scores."""
    return tau**2 / 3


def test_p_values_equal_the_binomial_distribution_function() -> None:
    for n, k, alpha in [(59, 0, 0.05), (100, 2, 0.05), (500, 30, 0.1), (10, 10, 0.5)]:
        assert risk_p_value(n, k, alpha) == pytest.approx(float(bdtr(k, n, alpha)), rel=1e-9)
    assert risk_p_value(0, 0, 0.05) == 1.0


def test_fifty_nine_rows_without_an_error_are_the_least() -> None:
    assert rows_without_error(0.05, 0.05) == 59
    assert risk_p_value(59, 0, 0.05) <= 0.05 < risk_p_value(58, 0, 0.05)
    assert (rows_without_error(0.02, 0.05), rows_without_error(0.01, 0.05)) == (149, 299)


def test_the_grid_starts_where_the_first_test_can_pass() -> None:
    rng = np.random.default_rng(1)
    scores, _ = traffic(rng, 2000)
    grid = threshold_grid(scores, BUDGET, 1000)
    expected = 2 * math.log(20) / 0.05 / 1000
    assert (scores < grid[0]).mean() == pytest.approx(expected, abs=0.01)
    assert (np.diff(grid) > 0).all()


def test_rows_that_another_rule_stopped_are_never_served() -> None:
    scores = np.array([0.1, np.inf, 0.2, np.inf] * 200)
    grid = threshold_grid(scores, BUDGET, 800)
    assert np.isfinite(grid).all()
    certificate = certify(scores, np.zeros(800, bool), grid, BUDGET, slices=["a"] * 800, groups=800)
    assert certificate.n == 400
    assert certificate.coverage == 0.5


def test_risk_exceeds_alpha_in_at_most_delta_of_calibrations() -> None:
    rng = np.random.default_rng(20261124)
    grid = threshold_grid(traffic(rng, 1000)[0], BUDGET, 1500)
    broken, nothing, coverage, runs = 0, 0, [], 400
    for _ in range(runs):
        scores, disagrees = traffic(rng, 1500)
        found = certify(scores, disagrees, grid, BUDGET, slices=["a"] * 1500, groups=1500)
        if found.tau is None:  # two errors among the first rows: no promise, nothing served
            nothing += 1
            continue
        broken += true_risk(found.tau) > BUDGET.alpha
        coverage.append(found.tau)
    # 400 runs at delta = .05: 20 expected at the worst, P(more than 32) under 0.5 %.
    assert broken <= 32
    assert nothing <= 24
    oracle = math.sqrt(3 * BUDGET.alpha)
    # Kept, but not by serving nothing: 79 % of an oracle that knows the risk.
    assert np.mean(coverage) > 0.75 * oracle


def test_the_naive_rule_would_break_the_promise_in_nearly_half() -> None:
    """The check above can fail: the loosest threshold whose own error is under alpha does."""
    rng = np.random.default_rng(20261124)
    grid = threshold_grid(traffic(rng, 1000)[0], BUDGET, 1500)
    broken = 0
    for _ in range(400):
        scores, disagrees = traffic(rng, 1500)
        naive = max(t for t in grid if disagrees[scores < t].mean() <= BUDGET.alpha)
        broken += true_risk(naive) > BUDGET.alpha
    assert broken > 100


def test_too_few_rows_serve_nothing_and_say_how_many_are_missing() -> None:
    scores = np.linspace(0, 1, 40)
    grid = threshold_grid(scores, BUDGET, 40)
    found = certify(scores, np.zeros(40, bool), grid, BUDGET, slices=["a"] * 40, groups=40)
    assert not found.certified
    assert found.tau is None
    assert found.missing >= 19
    assert "missing" in (found.reason or "")


def test_a_student_that_is_always_wrong_serves_nothing() -> None:
    scores = np.linspace(0, 1, 1000)
    grid = threshold_grid(scores, BUDGET, 1000)
    found = certify(scores, np.ones(1000, bool), grid, BUDGET, slices=["a"] * 1000, groups=1000)
    assert (found.status, found.tau) == ("none", None)
    assert "disagree" in (found.reason or "")
