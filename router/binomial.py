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
