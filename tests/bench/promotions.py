"""Thirty nights with a student that never changes: how often is a promise broken?

``python -m tests.bench.promotions --repetitions 300``. The loop's rule (decide on test rows, then
certify once on draws that decided nothing before, the k-th certificate with its share of delta)
against the obvious one: certify every night on all draws there are, and promote what looks best.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.calibrating import rows_wanted
from distill.deciding import Item, decide
from router.certify import Budget, Calibration, certify, threshold_grid

Floats = npt.NDArray[np.float64]
ALPHA, DELTA = 0.05, 0.05
NIGHTS = 30
TEST, CALIBRATE, COMBINE = 60, 120, 60
"""Draws that each day brings for each purpose."""
EXACT = 40_000
"""Requests over which a threshold's true risk is integrated."""


@dataclass(frozen=True, slots=True)
class World:
    """The fixed student: ``logit`` of P(disagree) over the traffic, normal with these."""

    mean: float = -4.0
    spread: float = 2.2
    noise: float = 0.7
    """How far a night's judge is from the truth, per request, in logits."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Requests: the truth about each, and whether student and teacher disagreed."""

    logit: Floats
    disagrees: npt.NDArray[np.bool_]

    def joined(self, other: Rows) -> Rows:
        """Both."""
        return Rows(
            np.concatenate([self.logit, other.logit]),
            np.concatenate([self.disagrees, other.disagrees]),
        )


NONE = Rows(np.zeros(0), np.zeros(0, dtype=bool))


class Judge:
    """One night's judge: the truth with noise that is fixed for each request."""

    def __init__(self, world: World, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._turn = rng.normal(size=3) * 7.0 + 11.0
        self._noise = world.noise

    def scores(self, logit: Floats) -> Floats:
        """P(disagree) as it sees it. The noise is a function of the request, so that a row has
        the same score whenever it is looked at."""
        wobble = np.zeros(len(logit))
        for turn in self._turn:
            wobble += np.sin(turn * logit * 17.0 + turn) / np.sqrt(1.5)
        found: Floats = 1.0 / (1.0 + np.exp(-(logit + self._noise * wobble)))
        return found


def drawn(world: World, rng: np.random.Generator, count: int) -> Rows:
    """So many requests."""
    logit = rng.normal(world.mean, world.spread, count)
    return Rows(logit, rng.random(count) < 1.0 / (1.0 + np.exp(-logit)))


def true_risk(world: World, judge: Judge, tau: float, sample: Floats) -> float:
    """P(disagree | served) of a threshold, over a large sample by expectation."""
    served = judge.scores(sample) < tau
    if not served.any():
        return 0.0
    return float((1.0 / (1.0 + np.exp(-sample[served]))).mean())


def threshold(judge: Judge, combine: Rows, rows: Rows, budget: Budget) -> float | None:
    """The certified threshold, if there is one."""
    found = certify(
        Calibration(
            judge.scores(rows.logit), rows.disagrees, ["all"] * len(rows.logit),
            [str(n) for n in range(len(rows.logit))],
        ),
        threshold_grid(judge.scores(combine.logit), budget, len(rows.logit)),
        budget,
    )  # fmt: skip
    return found.tau


def loop_breaks(world: World, seed: int) -> tuple[bool, int]:
    """The loop's rule over thirty nights: whether any promoted threshold breaks alpha, and how
    many were promoted."""
    rng = np.random.default_rng(seed)
    sample = rng.normal(world.mean, world.spread, EXACT)
    test = combine = fresh = NONE
    incumbent: tuple[Judge, float] | None = None
    attempts = promoted = 0
    broken = False
    for night in range(NIGHTS):
        test = test.joined(drawn(world, rng, TEST))
        combine = combine.joined(drawn(world, rng, COMBINE))
        fresh = fresh.joined(drawn(world, rng, CALIBRATE))
        judge = Judge(world, seed * 1000 + night)
        if incumbent is not None and not _passes(judge, incumbent, test):
            continue
        if len(fresh.logit) < rows_wanted(ALPHA, DELTA, attempts + 1):
            continue
        attempts += 1
        budget = Budget.promised(ALPHA, DELTA, "label", attempts)
        tau = threshold(judge, combine, fresh, budget)
        combine, fresh = combine.joined(fresh), NONE
        if tau is not None:
            promoted += 1
            incumbent = judge, tau
            broken = broken or true_risk(world, judge, tau, sample) > ALPHA
    return broken, promoted


def best_looking_breaks(world: World, seed: int) -> tuple[bool, int]:
    """The obvious rule: every night on all draws so far; what certifies more coverage serves."""
    rng = np.random.default_rng(seed)
    sample = rng.normal(world.mean, world.spread, EXACT)
    combine = rows = NONE
    best, promoted, broken = 0.0, 0, False
    for night in range(NIGHTS):
        combine = combine.joined(drawn(world, rng, COMBINE))
        rows = rows.joined(drawn(world, rng, CALIBRATE))
        judge = Judge(world, seed * 1000 + night)
        tau = threshold(judge, combine, rows, Budget(ALPHA, DELTA, "label"))
        if tau is None:
            continue
        coverage = float((judge.scores(rows.logit) < tau).mean())
        if coverage > best:
            best, promoted = coverage, promoted + 1
            broken = broken or true_risk(world, judge, tau, sample) > ALPHA
    return broken, promoted


def _passes(judge: Judge, incumbent: tuple[Judge, float], test: Rows) -> bool:
    """The gate. The student is the same one: agreement is equal, utility need not be."""
    before, tau = incumbent
    served, was = judge.scores(test.logit) < tau, before.scores(test.logit) < tau
    items = [
        Item("all", not wrong, not wrong, False, bool(now), bool(then))
        for wrong, now, then in zip(test.disagrees, served, was, strict=True)
    ]
    return decide(items, 0.01, 0.05, 50, 0.02).passed


def simulate(repetitions: int, first: int = 0) -> dict[str, object]:
    """Both rules over the same worlds."""
    world = World()
    ours = [loop_breaks(world, first + n) for n in range(repetitions)]
    theirs = [best_looking_breaks(world, first + n) for n in range(repetitions)]
    return {
        "repetitions": repetitions,
        "alpha": ALPHA,
        "delta": DELTA,
        "loop": _summary(ours),
        "best_looking": _summary(theirs),
    }


def _summary(found: Sequence[tuple[bool, int]]) -> dict[str, float]:
    return {
        "fortnights_broken": round(sum(b for b, _ in found) / len(found), 4),
        "promotions": round(sum(p for _, p in found) / len(found), 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=300)
    print(json.dumps(simulate(parser.parse_args().repetitions), indent=1))
