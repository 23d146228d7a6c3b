"""Which prompts the static tier may decide alone.

The bands are fitted on the *final* verdict (served or not), not on either tier's distance: outside
them the first tier's word stands, inside the second tier is asked. They widen together, by one
number: each combine row says how wide they must be for its verdict to be the second tier's, and so
few rows may need more that with 95 % confidence at most 0.5 % of traffic does (Clopper & Pearson,
1934; one order statistic of the needs, Wilks, 1941). Bands set each to an extreme of its own would
leave out such a share each (Tukey, 1947). Too few rows for that claim: no cascade.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from router.binomial import upper_bound

FLIPS = 0.005
CONFIDENCE = 0.95
WASTED = 0.01
"""Share of combine rows that may cost a student call although the second tier would have sent
them to the teacher at once."""

SURE_OUT = 0.95
"""P(out) from which bands of no width take the first tier's word before the student."""
OUT_SLOPE = 0.25
"""How fast that end moves, in log-odds, as the bands widen; the other two move by the whole.
Faster, and one row that needs wide bands after the student leaves the first tier no word before it
(ADR 005)."""

NEVER = 2.0
"""Above every probability."""
TINY = 1e-9
"""Log-odds end here and at one less this."""
ROUNDING = 1e-6
"""In log-odds: what keeps the row that sets the width inside."""

Value = Any
"""A number or an array of them; what is asked of it comes back in kind."""
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bands:
    """Where the first tier's word stands.

    Before the student: P(out) from ``out_from`` on is out; from ``ask_from`` up to it the second
    tier is asked; below, the student. After it: P(disagree) below ``low`` or from ``high`` on is
    the score; between, the second tier's is.
    """

    out_from: float
    ask_from: float
    low: float
    high: float

    def asks(self, first_out: Value) -> Value:
        """Whether the second tier is asked before the student."""
        return (first_out >= self.ask_from) & (first_out < self.out_from)

    def doubts(self, first_score: Value) -> Value:
        """Whether the second tier's P(disagree) is the score."""
        return (first_score >= self.low) & (first_score < self.high)


@dataclass(frozen=True, slots=True)
class Trial:
    """Combine rows as both tiers see them, shape (n,) each.

    ``scores`` are P(disagree), infinite where no answer could be served whatever its score;
    ``second_out`` whether the second tier's cut stops the row.
    """

    first_out: Floats
    first_score: Floats
    second_out: Bools
    second_score: Floats

    @property
    def alone(self) -> Floats:
        """The score of the second tier without a cascade."""
        return np.where(self.second_out, np.inf, self.second_score)


def allowed_flips(rows: int) -> int:
    """How many rows of a sample may flip for the claim to hold; -1 when it never can."""
    flips = -1
    while flips + 1 < rows and upper_bound(flips + 1, rows, 1 - CONFIDENCE) <= FLIPS:
        flips += 1
    return flips


def fit_bands(trial: Trial, strict: float, loose: float) -> Bands | None:
    """The narrowest bands of their family that hold for any threshold from ``strict`` to
    ``loose``: which of them will be certified is not known yet. None where the rows are too few
    to claim anything."""
    rows = len(trial.first_out)
    allowed = allowed_flips(rows)
    if allowed < 0:
        return None
    width = float(np.sort(_needs(trial, strict, loose))[rows - 1 - allowed]) + ROUNDING
    out_from = _probability(_log_odds(SURE_OUT) + OUT_SLOPE * width)
    low = _probability(_log_odds(strict) - width)
    high = _probability(_log_odds(loose) + width)
    return Bands(out_from, _ask_from(trial, out_from), low, high)


def cascade_score(trial: Trial, bands: Bands) -> Floats:
    """The score of the whole cascade: infinite where it sends the row to the teacher unasked."""
    inside = bands.doubts(trial.first_score) | bands.asks(trial.first_out)
    score = np.where(inside, trial.alone, trial.first_score)
    return np.where(trial.first_out >= bands.out_from, np.inf, score)


def share_asked(trial: Trial, bands: Bands) -> float:
    """Share of rows that need the second tier, before or after the student."""
    after = bands.doubts(trial.first_score) & (trial.first_out < bands.out_from)
    return float((bands.asks(trial.first_out) | after).mean())


def _needs(trial: Trial, strict: float, loose: float) -> Floats:
    """How wide the bands must be for each row's verdict to be the second tier's, shape (n,)."""
    after = _log_odds(trial.first_score)
    # A served row must not be stopped by the first tier, neither before the student nor after.
    served = ~trial.second_out & (trial.second_score < loose)
    before = (_log_odds(trial.first_out) - _log_odds(SURE_OUT)) / OUT_SLOPE
    needs = np.where(served, np.maximum(before, after - _log_odds(loose)), 0.0)
    # A row that is not served must not pass on the first tier's word.
    refused = trial.second_out | (trial.second_score >= strict)
    needs = np.maximum(needs, np.where(refused, _log_odds(strict) - after, 0.0))
    return np.maximum(needs, 0.0)


def _log_odds(probability: Value) -> Value:
    return logit(np.clip(probability, TINY, 1 - TINY))


def _probability(log_odds: float) -> float:
    """The inverse, for an end of a band: what is past the last log-odds is past every score."""
    if abs(log_odds) >= _log_odds(1.0):
        return NEVER if log_odds > 0 else 0.0
    return float(expit(log_odds))


def _ask_from(trial: Trial, out_from: float) -> float:
    wasted = np.sort(trial.first_out[trial.second_out & (trial.first_out < out_from)])
    allowed = int(WASTED * len(trial.first_out))
    return float(min(wasted[allowed], out_from)) if len(wasted) > allowed else out_from
