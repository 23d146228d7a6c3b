"""The gate's rules, one by one and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.deciding import Decision, Item, compared, cut_short, decide, first, hopeless


def items(
    both: int, gained: int = 0, lost: int = 0, neither: int = 0, **more: object
) -> list[Item]:
    kinds = [
        (True, True, both),
        (True, False, gained),
        (False, True, lost),
        (False, False, neither),
    ]
    return [
        Item("all", candidate, incumbent, **more)  # type: ignore[arg-type]
        for candidate, incumbent, count in kinds
        for _ in range(count)
    ]


def verdict(rows: list[Item]) -> Decision:
    return decide(rows, 0.01, 0.05, 50, 0.02)


def failed(rows: list[Item]) -> list[str]:
    return [check.name for check in verdict(rows).checks if not check.passed]


def test_a_better_one_passes_and_says_by_how_much() -> None:
    found = verdict(items(800, gained=60, lost=20, neither=120))
    assert found.passed
    assert found.overall is not None
    assert found.overall.difference == pytest.approx(0.04)
    assert "agreement 86.0%, incumbent 82.0%" in found.checks[0].says


def test_a_worse_one_is_refused_with_the_reason() -> None:
    found = verdict(items(800, gained=20, lost=60, neither=120))
    assert not found.passed
    assert found.reason.startswith("overall: agreement 82.0%, incumbent 86.0%; the lower bound")


def test_too_few_rows_decide_nothing() -> None:
    assert verdict(items(49)).reason == "49 test rows; a decision needs 50"
    assert first(items(49), 50).reason == "49 test rows; a decision needs 50"


def test_a_slice_that_is_clearly_worse_refuses_what_is_better_on_the_whole() -> None:
    rows = items(2000, gained=100, neither=100)
    rows += [Item("small", c, i) for c, i in [(False, True)] * 20 + [(True, True)] * 60]
    found = verdict(rows)
    assert failed(rows) == ["slices"]
    assert "small: agreement 75.0%, incumbent 100.0% on 80 rows" in found.reason


def test_a_slice_below_fifty_rows_is_not_judged() -> None:
    rows = items(2000, gained=100, neither=100) + [Item("small", False, True)] * 20
    assert failed(rows) == []


def test_past_failures_must_not_come_back() -> None:
    rows = items(2000, gained=100, neither=100)
    rows += items(0, gained=1, lost=9, regression=True)
    assert failed(rows) == ["regression set"]
    assert failed(items(2000, gained=100) + items(5, gained=4, lost=6, regression=True)) == []


def test_wrong_answers_served_cost_as_much_as_right_ones_bring() -> None:
    rows = items(900, gained=60, neither=40)
    sure = [Item("all", i.candidate, i.incumbent, False, True, i.incumbent) for i in rows]
    assert failed(sure) == []
    silent = [Item("all", i.candidate, i.incumbent, False, False, i.incumbent) for i in rows]
    assert failed(silent) == ["utility"]


def test_the_first_student_needs_no_incumbent_but_some_agreement() -> None:
    assert first(items(0, gained=60, neither=60), 50).passed
    assert not first(items(0, neither=60), 50).passed


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Equal students at a discordance of 6 %: the lower bound lies above the true difference of 0
    in about 5 % of test sets, and a candidate that is worse by the margin passes in at most 5 %."""
    rng = np.random.default_rng(3)
    above = passed = 0
    for _ in range(1500):
        draws = rng.random(400)
        equal = [(d < 0.03, 0.03 <= d < 0.06) for d in draws]
        above += compared(equal, 0.01).lower > 0
        worse = [(d < 0.025, 0.025 <= d < 0.06) for d in draws]
        passed += compared(worse, 0.01).lower > -0.01
    assert 0.02 < above / 1500 < 0.075
    assert passed / 1500 < 0.075


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=50, max_size=300)


@given(pairs, st.integers(1, 299), st.sampled_from([0.0, 0.01, 0.05]))
def test_who_is_asked_no_further_would_have_been_refused(
    both: list[tuple[bool, bool]], asked: int, margin: float
) -> None:
    agrees = [candidate for candidate, _ in both[:asked]]
    if hopeless(agrees, [was for _, was in both], margin) is None:
        return
    whole = decide([Item("all", c, i) for c, i in both], margin, 0.05, 50, 0.02)
    assert not whole.passed
    assert whole.reason.startswith("overall: ")


def test_a_broken_candidate_is_seen_in_its_first_answers() -> None:
    was = [True] * 290 + [False] * 10
    assert hopeless([False] * 4, was, 0.01) is None
    why = hopeless([False] * 20, was, 0.01)
    assert why is not None
    assert why.startswith("agreement on the first 20 of 300 test rows 0.0%, incumbent 100.0%; if")
    found = cut_short([Item("all", False, True)] * 20, why)
    assert not found.passed
    assert found.reason == f"overall: {why}"
    assert found.overall is not None
    assert (found.overall.rows, found.overall.candidate) == (20, 0.0)


def test_as_good_a_candidate_is_asked_to_the_end() -> None:
    was = [True, True, True, False] * 75
    assert all(hopeless(was[:n], was, 0.01) is None for n in range(1, 300))
