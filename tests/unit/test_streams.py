"""The short form of ``make bench-streams``: the promise holds where nothing changes, and the gate
closes where something does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tests.bench.streams import DELTA, SCENARIOS, World, run

STREAMS = 60


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("name", ["stationary", "30 nightly promotions"])
def test_where_nothing_changes_the_promise_is_broken_as_seldom_as_stated(
    world: World, name: str
) -> None:
    count = STREAMS if name == "stationary" else 25
    streams = [run(world, SCENARIOS[name], seed) for seed in range(count)]
    broken = sum(s.broken for s in streams)
    assert binom.sf(broken - 1, count, DELTA) > 0.001, f"{broken} of {count}"
    assert sum(s.certified for s in streams) > 0.9 * count


def test_five_thousand_draws_serve_nearly_what_an_oracle_would(world: World) -> None:
    streams = [run(world, SCENARIOS["stationary"], seed) for seed in range(STREAMS)]
    assert np.mean([s.coverage_of_oracle for s in streams]) > 0.95


@pytest.mark.parametrize(
    "name", ["slow drift", "sudden new intents", "degraded student", "changed teacher"]
)
def test_where_something_changes_the_gate_closes(world: World, name: str) -> None:
    streams = [run(world, SCENARIOS[name], seed) for seed in range(20)]
    closed = [s for s in streams if s.certified and s.refuted]
    assert len(closed) >= 0.95 * sum(s.certified for s in streams)
