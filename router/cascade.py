"""Which prompts the static tier may decide alone.

The bands are fitted on the *final* verdict (served or not), not on either tier's distance: outside
them the first tier's word stands, inside the second tier is asked. On the combine rows the
cascade's verdicts may differ from the second tier's on so few that with 95 % confidence at most
0.5 % of traffic does (Clopper & Pearson, 1934), were they one threshold and not three (ADR 005,
*Known weakness*). Too few rows for that claim: no cascade.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.binomial import upper_bound

FLIPS = 0.005
CONFIDENCE = 0.95
WASTED = 0.01
"""Share of combine rows that may cost a student call although the second tier would have sent
them to the teacher at once."""

NEVER = 2.0
"""Above every probability."""

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
    """The bands that ask the second tier least often, for any threshold from ``strict`` to
    ``loose``: which of them will be certified is not known yet. None where the rows are too few
    to claim anything."""
    allowed = allowed_flips(len(trial.first_out))
    if allowed < 0:
        return None
    found = [
        _banded(trial, (strict, loose), low_flips, allowed - low_flips)
        for low_flips in range(allowed + 1)
    ]
    return min(found, key=lambda bands: share_asked(trial, bands))


def cascade_score(trial: Trial, bands: Bands) -> Floats:
    """The score of the whole cascade: infinite where it sends the row to the teacher unasked."""
    inside = bands.doubts(trial.first_score) | bands.asks(trial.first_out)
    score = np.where(inside, trial.alone, trial.first_score)
    return np.where(trial.first_out >= bands.out_from, np.inf, score)


def share_asked(trial: Trial, bands: Bands) -> float:
    """Share of rows that need the second tier, before or after the student."""
    after = bands.doubts(trial.first_score) & (trial.first_out < bands.out_from)
    return float((bands.asks(trial.first_out) | after).mean())


def _banded(trial: Trial, taus: tuple[float, float], low_flips: int, high_flips: int) -> Bands:
    strict, loose = taus
    # A served row must not be stopped by the first tier, neither before the student nor after.
    served = ~trial.second_out & (trial.second_score < loose)
    out_from = _above(np.sort(trial.first_out[served]), high_flips // 2)
    after = np.sort(trial.first_score[served & (trial.first_out < out_from)])
    high = max(_above(after, high_flips - high_flips // 2), loose)
    # A row that is not served must not pass on the first tier's word.
    refused = trial.second_out | (trial.second_score >= strict)
    passed = np.sort(trial.first_score[refused & (trial.first_out < out_from)])
    low = float(passed[low_flips]) if len(passed) > low_flips else strict
    return Bands(out_from, _ask_from(trial, out_from), min(low, strict), high)


def _above(values: Floats, flips: int) -> float:
    """Just above all but the ``flips`` largest."""
    if len(values) <= flips:
        return NEVER
    return float(np.nextafter(values[len(values) - 1 - flips], np.inf))


def _ask_from(trial: Trial, out_from: float) -> float:
    wasted = np.sort(trial.first_out[trial.second_out & (trial.first_out < out_from)])
    allowed = int(WASTED * len(trial.first_out))
    return float(min(wasted[allowed], out_from)) if len(wasted) > allowed else out_from
