"""Thirty nights with a student that never changes (the figures of 300 repetitions are in
tests/bench/README.md)."""

from __future__ import annotations

import itertools

from tests.bench.promotions import World, best_looking_breaks, loop_breaks


def test_the_loop_breaks_its_promise_no_more_often_than_it_says() -> None:
    found = [loop_breaks(World(), seed) for seed in range(24)]
    assert sum(broken for broken, _ in found) <= 3  # more has a chance of 3 % at delta = 5 %
    assert sum(promoted for _, promoted in found) >= 2 * len(found), "it does promote"


def test_the_obvious_rule_breaks_it_often() -> None:
    """The simulation can tell: what the loop must not do fails here."""
    found = (best_looking_breaks(World(), seed)[0] for seed in range(24))
    assert sum(itertools.islice(filter(None, found), 3)) == 3
