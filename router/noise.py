"""The teacher's own noise, and whether it has become another teacher.

A frozen probe set is asked twice at set-up and once a day. How often the first two runs disagree is
the floor under any student's disagreement; a later run that disagrees with the first significantly
more often means that something behind the teacher's name has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.binomial import lower_bound

MIN_PROMPTS = 100
SIGNIFICANT = 1e-3
"""Chance that a day's run of an unchanged teacher is called changed."""

Answers = Mapping[str, str]
"""Answer by prompt."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Disagreements between two runs over the prompts that both answered."""

    prompts: int
    disagreements: int

    @classmethod
    def of(cls, one: Answers, other: Answers, agree: Callable[[str, str], bool]) -> Comparison:
        """Compare two runs by the task's comparator."""
        shared = sorted(one.keys() & other.keys())
        return cls(len(shared), sum(not agree(one[key], other[key]) for key in shared))

    @property
    def rate(self) -> float:
        """Share of prompts that disagree."""
        return self.disagreements / self.prompts if self.prompts else 0.0

    @property
    def lower(self) -> float:
        """One-sided 95 % lower bound (Clopper & Pearson)."""
        return lower_bound(self.disagreements, self.prompts, 0.05)


def change_p_value(floor: Comparison, today: Comparison) -> float:
    """P-value of 'today's run disagrees with the first no more often than the second did'
    (Fisher's exact test, one-sided)."""
    from scipy.stats import fisher_exact  # half of a gateway's start, if loaded there

    table = [
        [today.disagreements, today.prompts - today.disagreements],
        [floor.disagreements, floor.prompts - floor.disagreements],
    ]
    return float(fisher_exact(table, alternative="greater").pvalue)
