"""What is counted in plain fields is what the library would have counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from gateway.metrics import Metrics
from gateway.tallies import CounterTally, HistogramTally

BOUNDS = (0.001, 0.01, 0.1, 1.0)
VALUES = st.lists(st.floats(0, 10) | st.sampled_from(BOUNDS))


def exposed(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Samples by name and bucket."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


@given(st.lists(VALUES))
def test_a_histogram_is_what_the_librarys_observe_makes_of_the_same_values(
    rounds: list[list[float]],
) -> None:
    """However often it is settled in between; a bound belongs to the bucket below it."""
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally(Histogram("x", "x", buckets=BOUNDS, registry=mine), BOUNDS)
    library = Histogram("x", "x", buckets=BOUNDS, registry=theirs)
    for values in rounds:
        for value in values:
            tally.observe(value)
            library.observe(value)
        tally.settle()
    assert exposed(mine) == pytest.approx(exposed(theirs))


@given(VALUES, VALUES)
def test_a_counter_shows_each_increment_once(first: list[float], second: list[float]) -> None:
    registry = CollectorRegistry()
    tally = CounterTally(Counter("x", "x", registry=registry))
    for values in (first, second):
        for value in values:
            tally.inc(value)
        tally.settle()
        tally.settle()
    assert registry.get_sample_value("x_total") == pytest.approx(sum(first + second))


def test_whoever_reads_sees_what_was_counted_just_now() -> None:
    metrics = Metrics()
    metrics.overhead.labels("parse").observe(0.002)
    metrics.attempts.labels("teacher:0", "ok").inc()
    said = metrics.exposition().decode()
    assert 'understudy_overhead_seconds_bucket{le="0.0025",stage="parse"} 1.0' in said
    assert 'understudy_upstream_attempts_total{outcome="ok",upstream="teacher:0"} 1.0' in said
    assert generate_latest(metrics.registry) == said.encode()
