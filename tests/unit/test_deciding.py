"""The gate's rules, one by one and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from distill.deciding import Decision, Item, compared, decide, first


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
