"""Values are frozen where it is checked, and behave as frozen ones do elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.store.records import Attempt

ATTEMPT = Attempt.unanswered("teacher:0", "teacher", "timeout")


def test_equal_values_are_one_key() -> None:
    assert {ATTEMPT, replace(ATTEMPT)} == {ATTEMPT}
    assert hash(ATTEMPT) != hash(replace(ATTEMPT, outcome="ok"))


def test_they_have_no_other_fields() -> None:
    with pytest.raises(AttributeError):
        ATTEMPT.other = 1  # type: ignore[attr-defined]


def test_the_type_checker_refuses_to_change_one() -> None:
    """It would find the comment below unused otherwise, and that is an error."""
    changed = replace(ATTEMPT)
    changed.outcome = "ok"  # type: ignore[misc]
    assert changed.outcome == "ok"
