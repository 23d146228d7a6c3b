"""The audit keeps its promises: no claim is made, and no gate closed, more often than stated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from router.audit import Audit, AuditState, AuditStatus
from router.betting import (
    RiskEvidence,
    effective_sample_size,
    spent_delta,
    weighted_risk_p_value,
)
from router.certify import risk_p_value

ALPHA, DELTA = 0.05, 0.05
COUNTS = st.integers(0, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


def run(audit: Audit, labels: np.ndarray) -> AuditState:
    return audit.feed(audit.begin(1), map(bool, labels))


@pytest.mark.parametrize(("alpha", "labels"), [(0.05, 72), (0.02, 183), (0.01, 367)])
def test_labels_without_error_that_confirm_a_budget(alpha: float, labels: int) -> None:
    evidence = RiskEvidence(alpha)
    assert evidence.labels_to_confirm(0, 0, 0.05) == labels
    assert evidence.upper(labels, 0, 0.05) <= alpha < evidence.upper(labels - 1, 0, 0.05)


@given(COUNTS, st.sampled_from([0.01, 0.05, 0.3]))
def test_bounds_hold_the_observed_share_between_them(counts: tuple[int, int], alpha: float) -> None:
    n, k = counts
    evidence = RiskEvidence(alpha)
    lower, upper = evidence.lower(n, k, 0.05), evidence.upper(n, k, 0.05)
    share = k / n if n else 0.5
    assert 0.0 <= lower <= share + 1e-6
    assert share - 1e-6 <= upper <= 1.0


@given(COUNTS)
def test_stronger_evidence_comes_from_a_risk_farther_off(counts: tuple[int, int]) -> None:
    n, k = counts
    evidence = RiskEvidence(ALPHA)
    above = [evidence.log_below(n, k, m) for m in np.linspace(k / n if n else 0.5, 0.999, 12)[1:]]
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(above))


def test_evidence_is_a_fair_bet_on_its_null() -> None:
    """E[evidence] = 1 under 'risk is m', exactly, by summing over every count."""
    evidence = RiskEvidence(ALPHA)
    for n in (1, 10, 200):
        k = np.arange(n + 1)
        chance = binom.pmf(k, n, ALPHA)
        for log in (evidence.log_below, evidence.log_above):
            values = np.array([math.exp(log(n, int(i), ALPHA)) for i in k])
            assert float(chance @ values) == pytest.approx(1.0, abs=1e-6)


def test_a_risk_at_the_budget_is_confirmed_or_refuted_no_more_often_than_delta_says() -> None:
    rng, audit = np.random.default_rng(0), Audit(ALPHA, DELTA)
    confirmed = refuted = 0
    for _ in range(200):
        state = audit.begin(1)
        seen = set()
        for block in np.split(rng.random(1500) < ALPHA, 30):
            state = audit.feed(state, map(bool, block))
            seen.add(audit.status(state))
        confirmed += AuditStatus.CONFIRMED in seen
        refuted += state.refuted == "risk_above_budget"
    # 6/pi^2 * delta / 2 a side: 1.5 %, of 200 streams 3; 11 has probability below 1e-3.
    assert confirmed <= 10
    assert refuted <= 10


def test_a_good_student_is_confirmed_and_a_bad_one_refuted() -> None:
    rng, audit = np.random.default_rng(1), Audit(ALPHA, DELTA)
    assert audit.status(run(audit, rng.random(1000) < 0.01)) is AuditStatus.CONFIRMED
    bad = run(audit, rng.random(1000) < 0.15)
    assert audit.status(bad) is AuditStatus.REFUTED
    assert audit.labels_missing(bad) is None
    assert audit.bounds(bad).lower > ALPHA


def test_a_sudden_change_after_a_long_good_time_is_found_at_once() -> None:
    """Bounds over the whole past would need thousands of labels."""
    rng, audit = np.random.default_rng(2), Audit(ALPHA, DELTA)
    state = run(audit, rng.random(4000) < 0.01)
    assert audit.status(state) is AuditStatus.CONFIRMED
    while state.refuted is None:
        state = audit.feed(state, [bool(rng.random() < 0.4)])
    assert state.refuted == "sudden_change"
    assert state.labels < 4060
    assert audit.bounds(state).lower < ALPHA


def test_the_detector_is_silent_as_long_as_it_says() -> None:
    """The statistic minus the number of labels is a martingale: its mean at the budget is n."""
    rng = np.random.default_rng(3)
    audit = Audit(ALPHA, DELTA, false_alarm_labels=10**9)
    final = [audit.suspicion(run(audit, rng.random(60) < ALPHA)) for _ in range(400)]
    assert np.mean(np.minimum(final, 1e6)) < 2 * 60
    alarms = [Audit(ALPHA, DELTA, 1000) for _ in range(100)]
    stopped = sum(
        run(a, rng.random(100) < ALPHA).refuted == "sudden_change" for a in alarms
    )  # at most 100 / 1000 of streams, by Markov's inequality
    assert stopped <= 20


def test_suspicion_withholds_confirmed_and_passes() -> None:
    audit = Audit(ALPHA, DELTA)
    state = audit.feed(audit.begin(1), [False] * 1000)
    assert audit.status(state) is AuditStatus.CONFIRMED
    suspicious = audit.feed(state, [True] * 4)
    assert audit.status(suspicious) is AuditStatus.UNPROVEN
    assert suspicious.refuted is None
    assert audit.status(audit.feed(suspicious, [False] * 400)) is AuditStatus.CONFIRMED


@given(st.lists(st.booleans(), max_size=80), st.data())
def test_labels_may_come_in_blocks_of_any_size(labels: list[bool], data: st.DataObject) -> None:
    audit = Audit(ALPHA, DELTA)
    whole = audit.feed(audit.begin(1), labels)
    cut = data.draw(st.integers(0, len(labels)))
    halves = audit.feed(audit.feed(audit.begin(1), labels[:cut]), labels[cut:])
    singly = audit.begin(1)
    for label in labels:
        singly = audit.feed(singly, [label])
    for other in (halves, singly):
        assert (other.labels, other.errors, other.refuted) == (
            whole.labels, whole.errors, whole.refuted,
        )  # fmt: skip
        np.testing.assert_allclose(other.detector, whole.detector, rtol=1e-9, atol=1e-9)


def test_delta_is_spent_over_epochs() -> None:
    assert sum(spent_delta(0.05, k) for k in range(1, 20000)) == pytest.approx(0.05, abs=1e-5)
    audit = Audit(ALPHA, DELTA)
    first, tenth = audit.begin(1), audit.begin(10)
    assert (audit.labels_missing(first) or 0) < (audit.labels_missing(tenth) or 0)


def test_errors_at_the_budget_or_above_never_confirm() -> None:
    audit = Audit(ALPHA, DELTA)
    bad = audit.feed(audit.begin(1), [True, False] * 3)
    assert audit.labels_missing(bad) is None
    without = audit.labels_missing(bad, 0.0)
    assert without is not None
    after = audit.feed(bad, [False] * without)
    assert audit.status(audit.feed(after, [False] * 300)) is AuditStatus.CONFIRMED


def test_weighted_p_value_is_valid_and_not_much_worse_than_the_exact_one() -> None:
    rng = np.random.default_rng(4)
    n, low = 600, 0
    for _ in range(300):
        p = rng.choice([0.1, 0.5, 1.0], n)
        served = rng.random(n) < 0.7
        # Risk exactly alpha after weighting: the null's edge.
        loss = rng.random(n) < ALPHA
        drawn = rng.random(n) < p
        low += weighted_risk_p_value(
            served[drawn], loss[drawn], 1.0 / p[drawn], ALPHA, 10.0
        ) <= 0.05  # fmt: skip
    assert low <= 27  # P(Bin(300, .05) > 27) < 1e-3
    served, loss = np.ones(300, bool), np.zeros(300, bool)
    betting = weighted_risk_p_value(served, loss, np.ones(300), ALPHA, 1.0)
    assert risk_p_value(300, 0, ALPHA) < betting < 1e-4
    assert weighted_risk_p_value(~served, loss, np.ones(300), ALPHA, 1.0) == 1.0


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.ones(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([1.0, 1e9])) == pytest.approx(1.0)
