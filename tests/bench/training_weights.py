"""Do importance weights in training help the student? ``make bench-weights``.

Training rows are every fallback and a few draws of what the student served, so that easy traffic is
under-represented. Weighing a drawn row by 1 / p makes the set stand for all traffic again. Here a
classifier is trained with such weights, capped, and without, on the same rows, and measured on
later traffic of all kinds. CLINC150's 150 intents, their mix drawn anew per seed (Dirichlet).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from deploy.demo.task import load
from distill.classifier import Floats, embedded
from router.encoder import load_encoders

ROOT = Path(__file__).resolve().parents[2]
CAPS = (1.0, 3.0, 10.0, 33.0)
RATES = (0.03, 0.1)
SEEDS = 12
SPLITS = ("train", "val", "test")
FIRST, LEARN, LATER = 300, 2700, 1200


def main() -> None:
    """Print mean differences in agreement, in points, with their standard errors."""
    rows = {u.text.lower().strip(): u for u in load(ROOT / "tests/data/clinc150", *SPLITS)}
    vectors = embedded(load_encoders(ROOT / ".cache/encoders"), list(rows))
    labels = np.array([u.label for u in rows.values()])
    found = np.array([_agreements(vectors, labels, seed) for seed in range(SEEDS)])
    for number, rate in enumerate(RATES):
        plain = found[:, number, 0]
        print(f"draw rate {rate:g}: agreement without weights {plain.mean():.2%}")
        for which, cap in enumerate(CAPS[1:], start=1):
            gain = 100 * (found[:, number, which] - plain)
            error = gain.std(ddof=1) / np.sqrt(SEEDS)
            print(f"  weights up to {cap:g}: {gain.mean():+.2f} points (s.e. {error:.2f})")


def _agreements(vectors: Floats, labels: np.ndarray, seed: int) -> list[list[float]]:
    """Agreement on later traffic, by draw rate and cap."""
    rng = np.random.default_rng(seed)
    kinds = np.unique(labels)
    mix = np.maximum(rng.dirichlet(np.full(len(kinds), 0.7)), 0.002)
    p = mix[np.searchsorted(kinds, labels)]
    order = rng.choice(len(labels), FIRST + LEARN + LATER, replace=False, p=p / p.sum())
    first, learn, later = np.split(order, [FIRST, FIRST + LEARN])
    student = _fitted(vectors[first], labels[first], None)
    chances = student.predict_proba(vectors[learn])
    best = np.argsort(-chances.max(axis=1))
    right = student.classes_[chances.argmax(axis=1)][best] == labels[learn][best]
    good = np.flatnonzero(np.cumsum(right) / np.arange(1, len(right) + 1) >= 0.95)
    served = np.isin(np.arange(len(learn)), best[: good[-1] + 1 if len(good) else 0])
    told = []
    for rate in RATES:
        drawn = learn[served & (rng.random(len(learn)) < rate)]
        rows = np.concatenate([first, learn[~served], drawn])
        heavy = np.arange(len(rows)) >= len(rows) - len(drawn)
        told.append([
            float((
                _fitted(vectors[rows], labels[rows], np.where(heavy, min(1 / rate, cap), 1.0))
                .predict(vectors[later]) == labels[later]
            ).mean())
            for cap in CAPS
        ])  # fmt: skip
    return told


def _fitted(x: Floats, y: np.ndarray, weights: np.ndarray | None) -> LogisticRegression:
    model = LogisticRegression(C=10.0, max_iter=400)
    model.fit(x, y, sample_weight=weights)
    return model


if __name__ == "__main__":
    main()
