"""A thousand simulated streams per scenario through the real certificate and the real audit.

``make bench-streams`` (about five minutes on two cores); ``make test`` runs a short form. Writes
``var/bench/streams.json``, ``.md`` and ``.png``.

A world is a score distribution with a known P(disagree) at each score, so that the true risk of any
threshold is known. Each stream draws its own combine and calibrate rows, certifies, and is then
served in batches: draws at the rate that the audit's state asks for, labels in order, the gate
closing when the audit refutes. *Broken* is a stream in which the true risk was above alpha while it
was newly certified or confirmed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.audit import Audit, AuditStatus
from router.certify import Budget, Calibration, certify, threshold_grid
from tests.fakes.rig import ROOT

OUT = ROOT / "var/bench"
ALPHA, DELTA = 0.05, 0.05
ROWS = 5000
BATCH = 500
BATCHES = 240
CHANGE_AT = 80
UNPROVEN_RATE, FLOOR_RATE = 0.5, 0.02
NIGHTS = 30
NIGHT_BATCHES = 8
CALIBRATE_PER_NIGHT = 1500

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class World:
    """Mixed traffic (half in-domain, two fifths near, a tenth far) whose risk at every threshold
    is known from two million draws."""

    def __init__(self, seed: int = 0) -> None:
        scores, lost = self.draw(np.random.default_rng(seed), 2_000_000)
        order = np.argsort(scores)
        self._sorted = scores[order]
        self._risk = np.cumsum(lost[order]) / np.arange(1, len(order) + 1)

    @staticmethod
    def draw(rng: np.random.Generator, count: int, harder: float = 0.0) -> tuple[Floats, Bools]:
        """Scores (log-odds) and disagreements. ``harder`` shifts the truth, not the score."""
        part = rng.choice(3, count, p=[0.5, 0.4, 0.1])
        mean, spread = np.array([-4.5, 1.5, 4.0])[part], np.array([1.8, 1.8, 1.5])[part]
        scores = rng.normal(mean, spread)
        return scores, rng.random(count) < 1.0 / (1.0 + np.exp(-scores - harder))

    def risk(self, tau: float) -> float:
        """P(disagree · score < tau)."""
        served = int(np.searchsorted(self._sorted, tau))
        return float(self._risk[served - 1]) if served else 0.0

    def coverage(self, tau: float) -> float:
        """P(score < tau)."""
        return float(np.searchsorted(self._sorted, tau) / len(self._sorted))

    def oracle(self, alpha: float) -> float:
        """Coverage of a threshold that knows the truth."""
        return float(np.flatnonzero(self._risk <= alpha)[-1] + 1) / len(self._risk)


@dataclass(frozen=True, slots=True)
class Scenario:
    """How the true risk of what is served moves, batch by batch, and what the comparator adds.

    ``risk`` maps (batch, risk at certification) to the true risk; ``false_alarm`` and
    ``false_agree`` are the comparator's error rates.
    """

    name: str
    risk: Callable[[int, float], float]
    false_alarm: float = 0.0
    false_agree: float = 0.0
    nights: int = 0


def _still(batch: int, base: float) -> float:
    return base


def _drift(batch: int, base: float) -> float:
    return min(1.0, base + 0.12 * max(0, batch - CHANGE_AT) / (BATCHES - CHANGE_AT))


def _mixed_in(share: float, risk: float) -> Callable[[int, float], float]:
    """From the change on, ``share`` of what is served comes from elsewhere."""
    return lambda batch, base: (1 - share) * base + share * risk if batch >= CHANGE_AT else base


SCENARIOS: Mapping[str, Scenario] = {
    s.name: s
    for s in (
        Scenario("stationary", _still),
        Scenario("slow drift", _drift),
        Scenario("sudden new intents", _mixed_in(0.2, 0.6)),
        Scenario("degraded student", _mixed_in(1.0, 0.15)),
        Scenario("changed teacher", _mixed_in(0.1, 0.9)),
        Scenario("noisy comparator", _still, false_alarm=0.01, false_agree=0.05),
        Scenario("30 nightly promotions", _still, nights=NIGHTS),
    )
}


@dataclass(frozen=True, slots=True)
class Stream:
    """What became of one stream. ``delay`` counts requests from the change to the closed gate,
    ``harm`` wrong answers served beyond alpha from then on."""

    certified: bool
    broken: bool
    coverage_of_oracle: float
    confirmed_at: int | None
    refuted: str | None
    delay: int | None
    harm: float
    labels: int


def run(world: World, scenario: Scenario, seed: int) -> Stream:
    """One stream."""
    rng = np.random.default_rng(seed)
    if scenario.nights:
        return _nights(world, scenario, rng)
    tau = _certified(world, rng, ROWS, Budget(ALPHA, DELTA, "label"))
    if tau is None:
        return Stream(False, False, 0.0, None, None, None, 0.0, 0)
    base = world.risk(tau)
    served = _served(world, scenario, rng, tau, 1, BATCHES)
    return Stream(
        True,
        base > ALPHA or served.broken,
        world.coverage(tau) / world.oracle(ALPHA),
        served.confirmed_at,
        served.refuted,
        served.delay,
        served.harm,
        served.labels,
    )


def _nights(world: World, scenario: Scenario, rng: np.random.Generator) -> Stream:
    """A new version each night, each with its share of delta, whatever became of the last."""
    broken, coverage, certified, labels, refuted = False, [], 0, 0, None
    for night in range(1, scenario.nights + 1):
        budget = Budget.promised(ALPHA, DELTA, "label", night)
        tau = _certified(world, rng, CALIBRATE_PER_NIGHT, budget)
        if tau is None:
            coverage.append(0.0)
            continue
        certified += 1
        served = _served(world, scenario, rng, tau, night, NIGHT_BATCHES)
        broken = broken or world.risk(tau) > ALPHA or served.broken
        coverage.append(world.coverage(tau) / world.oracle(ALPHA))
        labels += served.labels
        refuted = refuted or served.refuted
    mean = float(np.mean(coverage))
    return Stream(certified > 0, broken, mean, None, refuted, None, 0.0, labels)


@dataclass(slots=True)
class _Served:
    broken: bool = False
    confirmed_at: int | None = None
    refuted: str | None = None
    delay: int | None = None
    harm: float = 0.0
    labels: int = 0


def _served(
    world: World,
    scenario: Scenario,
    rng: np.random.Generator,
    tau: float,
    number: int,
    batches: int,
) -> _Served:
    audit, found = Audit(ALPHA, DELTA), _Served()
    state, base, coverage = audit.begin(number), world.risk(tau), world.coverage(tau)
    for batch in range(batches):
        status = audit.status(state)
        if status is AuditStatus.CONFIRMED and found.confirmed_at is None:
            found.confirmed_at = state.labels
        risk = scenario.risk(batch, base)
        found.broken = found.broken or (status is AuditStatus.CONFIRMED and risk > ALPHA)
        count = int(rng.binomial(BATCH, coverage))
        rate = FLOOR_RATE if status is AuditStatus.CONFIRMED else UNPROVEN_RATE
        wrong = rng.random(int(rng.binomial(count, rate))) < risk
        flipped = np.where(wrong, scenario.false_agree, scenario.false_alarm)
        state = audit.feed(state, map(bool, wrong ^ (rng.random(len(wrong)) < flipped)))
        found.harm += count * max(0.0, risk - ALPHA)
        if state.refuted is not None:
            found.refuted = state.refuted
            found.delay = (batch + 1 - CHANGE_AT) * BATCH
            break
    found.labels = state.labels
    return found


def _certified(world: World, rng: np.random.Generator, rows: int, budget: Budget) -> float | None:
    combine, _ = world.draw(rng, rows // 2)
    scores, lost = world.draw(rng, rows)
    grid = threshold_grid(combine, budget, rows)
    return certify(Calibration(scores, lost, [""] * rows, [""] * rows), grid, budget).tau


def summary(name: str, streams: Sequence[Stream]) -> dict[str, Any]:
    """Shares with 95 % intervals (Wilson), delays and harm."""
    certified = [s for s in streams if s.certified]
    changes = SCENARIOS[name].risk is not _still
    delays = [s.delay for s in certified if s.delay is not None and changes]
    confirmed = [s.confirmed_at for s in certified if s.confirmed_at is not None]
    return {
        "scenario": name,
        "streams": len(streams),
        "broken": _share(sum(s.broken for s in streams), len(streams)),
        "refuted": _share(sum(s.refuted is not None for s in certified), len(certified)),
        "confirmed": _share(len(confirmed), len(certified)),
        "coverage_of_oracle": round(float(np.mean([s.coverage_of_oracle for s in streams])), 4),
        "labels_to_confirm": _quantiles(confirmed),
        "delay_requests": _quantiles(delays),
        "harm": _quantiles([s.harm for s in certified]),
    }


def _share(count: int, total: int) -> list[float]:
    if not total:
        return [0.0, 0.0, 1.0]
    p, z = count / total, 1.96
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return [round(v, 4) for v in (p, max(0.0, middle - half), middle + half)]


def _quantiles(values: Sequence[float]) -> list[float] | None:
    if not values:
        return None
    return [round(float(q), 1) for q in np.quantile(values, [0.1, 0.5, 0.9])]


def _worker(task: tuple[str, int, int]) -> list[Stream]:
    name, first, count = task
    world = World()
    return [run(world, SCENARIOS[name], seed) for seed in range(first, first + count)]


def simulate(name: str, count: int, pool: ProcessPoolExecutor) -> list[Stream]:
    """``count`` streams of a scenario, seeds 0 on."""
    block = max(1, count // 8)
    tasks = [(name, first, min(block, count - first)) for first in range(0, count, block)]
    return [stream for part in pool.map(_worker, tasks) for stream in part]


def main() -> int:
    """Every scenario; report and plots."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    found: dict[str, list[Stream]] = {}
    with ProcessPoolExecutor(2) as pool:
        for name in SCENARIOS:
            print(f"{name}: {count} streams", file=sys.stderr, flush=True)
            found[name] = simulate(name, count, pool)
    rows = [summary(name, streams) for name, streams in found.items()]
    OUT.mkdir(parents=True, exist_ok=True)
    whole = {"summary": rows, "streams": {n: [asdict(s) for s in v] for n, v in found.items()}}
    (OUT / "streams.json").write_text(json.dumps(whole) + "\n")
    text = _markdown(rows)
    (OUT / "streams.md").write_text(text)
    _plot(found)
    print(text)
    return 0


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [
        f"alpha {ALPHA}, delta {DELTA}, {ROWS} calibrate rows; shares with 95 % intervals, "
        "10/50/90 % quantiles",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    lines += [f"| {' | '.join(str(row[name]) for name in head)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _plot(found: Mapping[str, Sequence[Stream]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.5))
    names = list(found)
    shares = [_share(sum(s.broken for s in found[n]), len(found[n])) for n in names]
    middles = [s[0] for s in shares]
    errors = [[s[0] - s[1] for s in shares], [s[2] - s[0] for s in shares]]
    left.barh(names, middles, xerr=np.abs(errors))
    left.axvline(DELTA, color="black", linestyle="--")
    left.set_title("share of streams with risk above alpha while certified or confirmed")
    for name in names:
        delays = np.sort([s.delay for s in found[name] if s.delay is not None])
        if len(delays) and SCENARIOS[name].risk is not _still:
            middle.step(delays, np.arange(1, len(delays) + 1) / len(found[name]), label=name)
    middle.set_title("gate closed after so many requests from the change")
    middle.legend()
    for name in names:
        right.hist(
            [s.coverage_of_oracle for s in found[name]], bins=40, histtype="step", label=name
        )
    right.set_title("coverage as a share of an oracle's")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(OUT / "streams.png", dpi=110)


if __name__ == "__main__":
    sys.exit(main())
