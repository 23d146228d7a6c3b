"""When a run is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from distill.watching import Due, Seen, check_schedule, due
from gateway.distill_settings import Distill
from gateway.errors import ConfigError
from gateway.store.audits import EventKind
from gateway.store.ledger import DAY_S, Run, RunState

NOON = datetime(2026, 11, 25, 12, 0).timestamp()


def run(state: RunState, started: float) -> Run:
    return Run("t-1", "t", 1, "x", state, "", started, None, {}, "code", False)


def seen(**more: object) -> Seen:
    base = Seen(NOON, NOON - 30, [], False, 0, frozenset(), 0.0)
    return replace(base, **more)  # type: ignore[arg-type]


def test_the_schedule_fires_once() -> None:
    nightly = Distill(schedule="0 12 * * *")
    assert due(seen(), nightly) == Due("schedule")
    assert due(seen(now=NOON + 30, checked=NOON), nightly) == Due(None)
    assert due(seen(now=NOON - 1, checked=NOON - 31), nightly) == Due(None)
    # A look that comes late does not miss it.
    assert due(seen(now=NOON + 4000, checked=NOON - 4000), nightly) == Due("schedule")
    assert due(seen(), Distill()) == Due(None)


@pytest.mark.parametrize(
    ("wanted", "state", "trigger"),
    [
        ({"rows_trigger": 100}, {"new_rows": 100}, "rows"),
        ({"rows_trigger": 100}, {"new_rows": 99}, None),
        ({}, {"events": frozenset({EventKind.TEACHER_CHANGED})}, "teacher_changed"),
        ({"on_teacher_change": False}, {"events": frozenset({EventKind.TEACHER_CHANGED})}, None),
        ({"on_drift": True}, {"events": frozenset({EventKind.DRIFT})}, "drift"),
        ({}, {"events": frozenset({EventKind.DRIFT})}, None),
    ],
)
def test_other_triggers(
    wanted: dict[str, object], state: dict[str, object], trigger: str | None
) -> None:
    settings = Distill(**wanted)
    assert due(seen(**state), settings) == Due(trigger)


def test_what_holds_a_run_back() -> None:
    wanted = Distill(rows_trigger=1, cooldown_s=3600, failures=2, usd_per_day=5)
    ask = {"new_rows": 5}
    recent = run(RunState.REFUSED, NOON - 100)
    found = due(seen(**ask, runs=[recent]), wanted)
    assert (found.trigger, found.held_back) == (None, "rows: the last run began 100 s ago")
    failed = [run(RunState.FAILED, NOON - 4000), run(RunState.FAILED, NOON - 9000)]
    assert "the last 2 runs failed" in str(due(seen(**ask, runs=failed), wanted).held_back)
    assert due(seen(**ask, runs=failed[:1]), wanted).trigger == "rows"
    old = [replace(r, started_at=r.started_at - DAY_S) for r in failed]
    assert due(seen(**ask, runs=old), wanted).trigger == "rows"
    assert "5.00 USD" in str(due(seen(**ask, spent_today=5.0), wanted).held_back)


def test_a_run_that_was_cut_goes_on_at_once() -> None:
    cut = [run(RunState.RUNNING, NOON - 10)]
    assert due(seen(runs=cut), Distill()) == Due("resume")
    assert due(seen(runs=cut, leased=True), Distill()) == Due(None)


def test_expressions_that_are_none() -> None:
    with pytest.raises(ValueError, match="five fields"):
        Distill(schedule="nightly")
    with pytest.raises(ConfigError, match="no cron expression"):
        check_schedule(Distill(schedule="61 2 * * *"))
    check_schedule(Distill(schedule="0 2 * * 1-5"))
