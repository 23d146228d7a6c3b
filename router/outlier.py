"""P(out of distribution) from the distance scores, learned without any outlier.

For categorical tasks whole classes are held out in turn: prompts of a class that the head and
the index never saw stand for the near-domain prompts that are the main leak (open-set
simulation). Where labels are few or absent, the similarity alone is placed on the scale of the
task's own prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from router.distance import Distance, Floats
from router.logistic import Logistic

FOLDS = 4
MIN_CLASSES = 8
MAX_ROWS = 6000
"""Rows used for the simulation; the final head and index use all."""

SIGNS = (-1, -1, -1)
"""Near and familiar never speak for 'out'."""

Bools = npt.NDArray[np.bool_]


def fit_outlier(vectors: Floats, labels: Sequence[str] | None, seed: int) -> Logistic:
    """Learn P(out) over ``DistanceScores.features()`` from training prompts, shape (n, d)."""
    if labels is None or len(set(labels)) < MIN_CLASSES:
        return _similarity_only(vectors, seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(vectors))[:MAX_ROWS]
    sample, names = vectors[rows], np.asarray(labels)[rows]
    classes = rng.permutation(np.unique(names))
    features: list[npt.NDArray[np.float32]] = []
    outs: list[Bools] = []
    for fold in range(FOLDS):
        held = np.isin(names, classes[fold::FOLDS])
        seen = ~held & (rng.random(len(names)) < 0.75)
        rest = ~seen
        distance = Distance.fitted(sample[seen], [str(n) for n in names[seen]], seed)
        features.append(distance.scores(sample[rest]).features())
        outs.append(held[rest])
    out = np.concatenate(outs)
    # Both sides weigh the same: the share of outliers in traffic is not known here.
    weight = np.where(out, 0.5 / max(out.mean(), 1e-9), 0.5 / max(1 - out.mean(), 1e-9))
    return Logistic().fit(np.vstack(features), out, weight, SIGNS)


def _similarity_only(vectors: Floats, seed: int) -> Logistic:
    """Half-way point at the 2 % quantile of the training prompts' own leave-out similarity."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    cut = max(1, len(order) // 5)
    index = Distance.fitted(vectors[order[cut:]] if len(order) > cut else vectors, None, seed)
    inside = index.nearest.score_samples(vectors[order[:cut]]).astype(np.float64)
    middle, spread = float(np.quantile(inside, 0.02)), float(max(inside.std(), 1e-3))
    mean, scale = np.array([0.0, middle, 0.0]), np.array([1.0, spread, 1.0])
    return Logistic.from_state(mean, scale, np.array([0.0, -2.0, 0.0]), 0.0)
