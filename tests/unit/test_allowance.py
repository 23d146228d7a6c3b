"""What a key may use: exact within a process, shared over the store, nothing counted twice."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.allowance import Allowances, day_of, minute_of
from gateway.auth import Principal
from gateway.errors import GatewayError
from gateway.store.place import Place

NOON = 20_000 * 86_400.0 + 43_200
LIMITED = Principal("app", frozenset("*"), False, None, 5, 100, 1.0)


def refused(allowances: Allowances, now: float) -> str | None:
    """The error's code, or None where the request is let in."""
    try:
        allowances.admit(LIMITED, now)
    except GatewayError as error:
        assert int(error.headers["retry-after"]) >= 1
        return error.code
    return None


def test_requests_are_counted_by_the_minute() -> None:
    allowances = Allowances()
    assert [refused(allowances, NOON) for _ in range(6)] == [None] * 5 + ["rate_limit_exceeded"]
    assert refused(allowances, NOON + 59.9) == "rate_limit_exceeded"
    assert refused(allowances, NOON + 60) is None


def test_tokens_and_money_count_once_they_are_spent() -> None:
    allowances = Allowances()
    allowances.spent("app", 99, 0.5, NOON)
    assert refused(allowances, NOON) is None
    allowances.spent("app", 1, 0.4, NOON)
    assert refused(allowances, NOON) == "rate_limit_exceeded"
    assert refused(allowances, NOON + 60) is None
    allowances.spent("app", 0, 0.1, NOON + 60)
    assert refused(allowances, NOON + 60) == "insufficient_quota"
    assert refused(allowances, NOON + 43_199) == "insufficient_quota"
    assert refused(allowances, NOON + 43_200) is None


def test_who_has_no_limits_is_not_counted_and_may_be_revoked() -> None:
    allowances, free = Allowances(), Principal("free", frozenset("*"), False)
    allowances.admit(free, NOON)
    assert not allowances.take()
    allowances.learn({}, frozenset({"free"}))
    with pytest.raises(GatewayError, match="revoked"):
        allowances.admit(free, NOON)


STEPS = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(
    ["spend", "share", "lost"])), max_size=60)  # fmt: skip


@given(steps=STEPS)
def test_several_processes_agree_and_nothing_is_counted_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    store = Place(tmp_path_factory.mktemp("usage") / "x.db").access()
    everyone = {"a": Allowances(), "b": Allowances()}
    windows = [minute_of(NOON), day_of(NOON)]
    spent = 0
    with contextlib.closing(store):
        for name, step in [*steps, ("a", "share"), ("b", "share"), ("a", "share")]:
            one = everyone[name]
            if step == "spend":
                one.spent("app", 1, 0.25, NOON)
                spent += 1
                continue
            before = one.used("app", windows[0]).tokens
            mine = one.take()
            assert one.used("app", windows[0]).tokens == before  # not even while it is under way
            if step == "lost":
                one.keep()
            else:
                one.learn(*store.share(mine, windows))
            assert one.used("app", windows[0]).tokens >= before
        for one in everyone.values():
            assert one.used("app", windows[0]).tokens == spent
            assert one.used("app", windows[1]).usd == spent / 4


def test_minutes_are_forgotten_and_days_are_not(tmp_path: Path) -> None:
    with contextlib.closing(Place(tmp_path / "x.db").access()) as store:
        allowances = Allowances()
        allowances.spent("app", 3, 0.5, NOON)
        store.share(allowances.take(), [])
        store.forget(minute_of(NOON + 60))
        uses, _ = store.share({}, [minute_of(NOON), day_of(NOON)])
        assert list(uses) == [("app", day_of(NOON))]
