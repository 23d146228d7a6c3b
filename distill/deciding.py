"""The gate: is the candidate no worse than the incumbent, and where?

Everything here is measured on test rows that no student learned from. The certificate takes no
part: promoting on the best-looking certificate breaks the promise in a third of all fortnights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.stats import binomtest, norm

LEVEL = 0.05
SLICE_ROWS = 50


@dataclass(frozen=True, slots=True)
class Item:
    """One test row: who agrees with the teacher, and whom a fixed rule would serve."""

    slice: str
    candidate: bool
    incumbent: bool
    regression: bool = False
    candidate_served: bool = False
    incumbent_served: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """A paired difference of two rates with its one-sided lower bound."""

    rows: int
    candidate: float
    incumbent: float
    difference: float
    lower: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the gate."""

    name: str
    passed: bool
    says: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the candidate may take the incumbent's place, and every rule's word."""

    passed: bool
    reason: str
    overall: Compared | None
    slices: dict[str, Compared] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    regression: Compared | None = None
    """Past failures alone; None where there are none among the test rows."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compared(pairs: Sequence[tuple[bool, bool]], margin: float, level: float = LEVEL) -> Compared:
    """(candidate, incumbent) pairs: the difference, its lower bound at ``level``, and the p-value
    of 'the candidate is worse by ``margin`` or more'.

    Adjusted Wald bound for paired proportions: Bonett & Price, J. Educ. Behav. Stat. 37 (2012).
    """
    n = len(pairs)
    gained = sum(c and not i for c, i in pairs)
    lost = sum(i and not c for c, i in pairs)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    lower = up - down - float(norm.ppf(1 - level)) * error
    p_value = float(norm.sf((up - down + margin) / error))
    return Compared(
        n, sum(c for c, _ in pairs) / n, sum(i for _, i in pairs) / n, (gained - lost) / n,
        lower, p_value,
    )  # fmt: skip


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int, float]:
    """(candidate, incumbent) pairs: what was lost, what was gained, and the exact one-sided p-value
    of 'the candidate is no worse'.

    McNemar, Psychometrika 12 (1947), with the binomial in place of its approximation.
    """
    lost = sum(i and not c for c, i in pairs)
    gained = sum(c and not i for c, i in pairs)
    if not lost + gained:
        return 0, 0, 1.0
    return lost, gained, float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)


def decide(
    items: Sequence[Item], margin: float, slice_margin: float, min_rows: int, utility_margin: float
) -> Decision:
    """Apply every rule; the reason names the first that failed.

    A candidate without an incumbent passes: the certificate alone says whether it serves.
    """
    if len(items) < min_rows:
        why = f"{len(items)} test rows; a decision needs {min_rows}"
        return Decision(False, why, None, checks=[Check("test rows", False, why)])
    overall = compared([(i.candidate, i.incumbent) for i in items], margin)
    slices = _slices(items, slice_margin)
    checks = [
        Check(
            "overall", overall.lower > -margin,
            f"agreement {overall.candidate:.1%}, incumbent {overall.incumbent:.1%}; the lower "
            f"bound of the difference is {overall.lower:+.2%}, wanted above {-margin:+.2%}",
        ),
        _worst_slice(slices, slice_margin),
        _regression(items),
        _utility(items, utility_margin),
    ]  # fmt: skip
    failed = [c for c in checks if not c.passed]
    reason = f"{failed[0].name}: {failed[0].says}" if failed else "no worse than the incumbent"
    past = [(i.candidate, i.incumbent) for i in items if i.regression]
    regression = compared(past, 0.0) if past else None
    return Decision(not failed, reason, overall, slices, checks, regression)


def hopeless(agrees: Sequence[bool], incumbent: Sequence[bool], margin: float) -> str | None:
    """Why ``decide`` refuses the candidate whatever it says to the test rows that were not asked
    about yet: it fails the overall rule even if it agrees on all of them. None where it may pass.

    Curtailed sampling (Phatak & Bhatt, Technometrics 9, 1967): no other decision than with every
    row, for fewer answers.
    """
    asked, rows = len(agrees), len(incumbent)
    best = compared(
        [*zip(agrees, incumbent, strict=False), *((True, was) for was in incumbent[asked:])], margin
    )
    if best.lower > -margin:
        return None
    return (
        f"agreement on the first {asked} of {rows} test rows {sum(agrees) / asked:.1%}, incumbent "
        f"{sum(incumbent[:asked]) / asked:.1%}; if it agreed on all others, the lower bound of the "
        f"difference would be {best.lower:+.2%}, wanted above {-margin:+.2%}"
    )


def cut_short(items: Sequence[Item], why: str) -> Decision:
    """The refusal of a candidate that was asked about these test rows alone; see ``hopeless``."""
    overall = compared([(i.candidate, i.incumbent) for i in items], 0.0)
    return Decision(False, f"overall: {why}", overall, checks=[Check("overall", False, why)])


def first(items: Sequence[Item], min_rows: int) -> Decision:
    """The decision on a task's first student."""
    if len(items) < min_rows:
        why = f"{len(items)} test rows; a decision needs {min_rows}"
        return Decision(False, why, None, checks=[Check("test rows", False, why)])
    overall = compared([(i.candidate, False) for i in items], 0.0)
    if not any(i.candidate for i in items):
        why = "the candidate agrees with the teacher on no test row"
        return Decision(False, why, overall, checks=[Check("overall", False, why)])
    why = f"there is no incumbent; agreement {overall.candidate:.1%} on all traffic"
    return Decision(True, why, overall, _slices(items, 0.0), [Check("overall", True, why)])


def _slices(items: Sequence[Item], margin: float) -> dict[str, Compared]:
    groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for item in items:
        groups[item.slice].append((item.candidate, item.incumbent))
    return {
        name: compared(pairs, margin)
        for name, pairs in sorted(groups.items())
        if len(pairs) >= SLICE_ROWS
    }


def _worst_slice(slices: dict[str, Compared], margin: float) -> Check:
    """Holm, S. (1979): the slices' tests at levels that keep the chance of any false alarm.

    A slice fails where it is shown to be worse by more than the margin: wanting each of many small
    slices shown *not* to be would refuse equal students for want of rows.
    """
    name = "slices"
    if not slices:
        return Check(name, True, f"none has {SLICE_ROWS} test rows")
    worse = sorted((1.0 - c.p_value, which) for which, c in slices.items())
    p_value, which = worse[0]
    found = slices[which]
    if p_value <= LEVEL / len(worse):
        return Check(
            name, False,
            f"{which}: agreement {found.candidate:.1%}, incumbent {found.incumbent:.1%} on "
            f"{found.rows} rows: worse by more than {margin:.0%} (p = {p_value:.2g})",
        )  # fmt: skip
    return Check(name, True, f"none of {len(slices)} is worse by more than {margin:.0%}")


def _regression(items: Sequence[Item]) -> Check:
    """Past failures, frozen at entry: what the incumbent learned must not be lost again.

    McNemar's exact test, one-sided, at 5 %.
    """
    rows = [i for i in items if i.regression]
    lost, gained, p_value = mcnemar([(i.candidate, i.incumbent) for i in rows])
    says = f"{len(rows)} past failures: {lost} lost, {gained} gained (p = {p_value:.2g})"
    return Check("regression set", p_value > LEVEL, says)


def _utility(items: Sequence[Item], margin: float) -> Check:
    """At thresholds that were fixed before: right answers served less wrong ones."""
    pairs = [
        (_worth(i.candidate_served, i.candidate), _worth(i.incumbent_served, i.incumbent))
        for i in items
    ]
    gains = [c - i for c, i in pairs]
    mean = sum(gains) / len(gains)
    spread = math.sqrt(sum((g - mean) ** 2 for g in gains) / max(1, len(gains) - 1) / len(gains))
    lower = mean - float(norm.ppf(1 - LEVEL)) * spread
    served = sum(i.candidate_served for i in items) / len(items)
    before = sum(i.incumbent_served for i in items) / len(items)
    says = (
        f"serves {served:.1%}, the incumbent {before:.1%}; utility {mean:+.2%} of requests, lower "
        f"bound {lower:+.2%}, wanted above {-margin:+.2%}"
    )
    return Check("utility", lower > -margin, says)


def _worth(served: bool, agrees: bool) -> int:
    return (1 if agrees else -1) if served else 0
