"""The cascade says what the sentence tier says, but for the share that it claims."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from router.cascade import (
    CONFIDENCE,
    FLIPS,
    Bands,
    Trial,
    allowed_flips,
    cascade_score,
    fit_bands,
    share_asked,
)


def trial(rng: np.random.Generator, rows: int, noise: float = 0.7) -> Trial:
    """Two tiers that see the same truth, the first through more noise."""
    truth = rng.normal(-1, 3, rows)

    def seen(spread: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(truth + rng.normal(0, spread, rows))))

    first, second = seen(noise), seen(0.2)
    return Trial(seen(noise), first, seen(0.2) > 0.98, second)


def flips(rows: Trial, bands: Bands, tau: float) -> float:
    alone = np.where(rows.second_out, np.inf, rows.second_score)
    return float(((cascade_score(rows, bands) < tau) != (alone < tau)).mean())


def test_so_few_rows_may_flip_that_the_claim_holds() -> None:
    assert [allowed_flips(n) for n in (500, 597, 598, 2000, 5000)] == [-1, -1, 0, 4, 16]
    for n in (598, 2000, 5000):
        # Were the true share at the limit, so few flips would be seen at most 5 times in 100.
        assert binom.cdf(allowed_flips(n), n, FLIPS) <= 1 - CONFIDENCE + 1e-3


def test_too_few_rows_claim_nothing() -> None:
    assert fit_bands(trial(np.random.default_rng(0), 500), 0.1, 0.2) is None


@pytest.mark.parametrize("rows", [598, 2000])
def test_on_fresh_rows_verdicts_flip_as_seldom_as_claimed(rows: int) -> None:
    # 598 are the fewest that allow the claim: not one of them may flip.
    rng, broken, fits = np.random.default_rng(1), 0, 60
    for _ in range(fits):
        own = trial(rng, rows)
        bands = fit_bands(own, 0.1, 0.2)
        assert bands is not None
        assert share_asked(own, bands) < 0.8
        fresh = trial(rng, 20_000)
        broken += max(flips(fresh, bands, tau) for tau in (0.1, 0.15, 0.2)) > FLIPS
    # 5 % of fits may: more than 7 of 60 break the claim once in a hundred runs if they do.
    assert broken <= binom.ppf(0.99, fits, 1 - CONFIDENCE)


def test_tiers_that_say_the_same_need_no_second() -> None:
    rng = np.random.default_rng(2)
    rows = trial(rng, 2000, noise=0.7)
    same = Trial(rows.first_out, rows.second_score, rows.second_score > 2, rows.second_score)
    bands = fit_bands(same, 0.1, 0.1)
    assert bands is not None
    assert share_asked(same, bands) < 0.2
    assert flips(same, bands, 0.1) <= FLIPS


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.01, 0.9), st.floats(1.0, 3.0))
def test_bands_are_in_order_and_hold_on_their_own_rows(seed: int, tau: float, wider: float) -> None:
    rows = trial(np.random.default_rng(seed), 900)
    loose = min(0.95, tau * wider)
    bands = fit_bands(rows, tau, loose)
    assert bands is not None
    assert bands.low <= tau
    assert bands.high >= loose
    assert bands.ask_from <= bands.out_from
    for threshold in (tau, loose):
        assert flips(rows, bands, threshold) <= allowed_flips(900) / 900 + 1e-9


def test_scores_outside_the_bands_are_the_first_tier_s() -> None:
    rows = Trial(
        np.array([0.1, 0.1, 0.5, 0.9, 0.1]),
        np.array([0.01, 0.3, 0.01, 0.01, 0.9]),
        np.array([False, True, False, False, False]),
        np.array([0.5, 0.5, 0.6, 0.5, 0.5]),
    )
    bands = Bands(out_from=0.8, ask_from=0.4, low=0.1, high=0.7)
    np.testing.assert_allclose(cascade_score(rows, bands), [0.01, np.inf, 0.6, np.inf, 0.9])
    assert share_asked(rows, bands) == pytest.approx(2 / 5)
