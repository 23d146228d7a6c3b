"""Exact one-sided confidence bounds on a share (Clopper & Pearson, Biometrika 26, 1934)."""

from __future__ import annotations

from scipy.special import betaincinv


def upper_bound(errors: int, rows: int, delta: float) -> float:
    """The share that so few errors exclude from above, wrong with probability ``delta``; 1 where
    all rows, or none at all, are errors."""
    if errors >= rows:
        return 1.0
    return float(betaincinv(errors + 1, rows - errors, 1.0 - delta))


def lower_bound(errors: int, rows: int, delta: float) -> float:
    """The share that so many errors exclude from below, wrong with probability ``delta``."""
    if not errors:
        return 0.0
    return float(betaincinv(errors, rows - errors + 1, delta))


def more_failures_p_value(k: int, n: int, other_k: int, other_n: int) -> float:
    """P-value of 'k of n is no higher a rate than other_k of other_n': Fisher's exact test,
    one-sided, by the hypergeometric tail."""
    if n == 0 or other_n == 0:
        return 1.0
    from scipy.stats import hypergeom

    return float(hypergeom.sf(k - 1, n + other_n, k + other_k, n))
