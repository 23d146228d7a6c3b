"""Slices of a task's traffic, by answer where answers are a closed set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

SMALLEST = 20
"""Rows of an answer from which it is a slice of its own."""


def closed_slice(answers: Sequence[str]) -> Callable[[str], str]:
    """The name of an answer's slice: itself where it is frequent, ``other`` where it is not, and
    ``all`` where a task's answers are no closed set."""
    counts = Counter(answers)
    frequent = {a for a, n in counts.items() if n >= SMALLEST and len(a) <= 64}
    if sum(counts[a] for a in frequent) < 0.5 * len(answers):
        return lambda answer: "all"
    return lambda answer: answer if answer in frequent else "other"
