"""A projection learned from the task's own labels, in which distance means another answer.

The hidden layer of a small classifier (one ReLU layer over the frozen encoder's vector). Intents
that a general encoder puts side by side come apart there, so that a near neighbour of another
kind is far (a light form of fine-tuning the encoder itself; compare Zhou et al., *Contrastive
out-of-distribution detection for pretrained transformers*, arXiv 2104.08812). Its labels are
smoothed (Szegedy et al., arXiv 1512.00567): a network that need not be sure of what it learned
keeps apart what it never saw, by 0.4 to 2.6 points of AUROC (ADR 005).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

WIDTH = 256
EPOCHS = 15
PENALTY = 1e-3
SMOOTHING = 0.1
"""Share of labels that are drawn at random, anew in each epoch: in expectation the loss of labels
that are smoothed by as much, which scikit-learn does not offer."""
SCALE = 60.0**0.5
"""Unit vectors are small inputs for a network's usual initial weights."""


class Projection:
    """Unit vectors in, shape (n, d); unit vectors out, shape (n, 256)."""

    def __init__(self, width: int = WIDTH, epochs: int = EPOCHS, seed: int = 0) -> None:
        self.width = width
        self.epochs = epochs
        self.seed = seed

    def fit(self, vectors: Floats, labels: Sequence[str]) -> Self:
        """Learn from (n, d) unit vectors and their labels; the same seed gives the same weights."""
        from sklearn.neural_network import MLPClassifier

        # A number would begin the same shuffle anew in each epoch.
        random = np.random.RandomState(self.seed)
        model = MLPClassifier((self.width,), alpha=PENALTY, random_state=random)
        names, index = np.unique(np.asarray(labels), return_inverse=True)
        scaled, answers = vectors * np.float32(SCALE), np.arange(len(names))
        for _ in range(self.epochs):
            drawn = random.randint(0, len(names), len(index))
            smoothed = np.where(random.uniform(size=len(index)) < SMOOTHING, drawn, index)
            model.partial_fit(scaled, smoothed, classes=answers)
        # Rounded to what the artefact stores, so that serving sees what was fitted.
        self.weight_ = _rounded(model.coefs_[0] * SCALE)
        self.bias_ = _rounded(model.intercepts_[0])
        return self

    @classmethod
    def from_state(cls, weight: npt.NDArray[np.float16], bias: npt.NDArray[np.float16]) -> Self:
        """Rebuild from what an artefact stores, shapes (d, 256) and (256,)."""
        projection = cls(width=weight.shape[1])
        projection.weight_ = weight.astype(np.float32)
        projection.bias_ = bias.astype(np.float32)
        return projection

    def transform(self, vectors: Floats) -> Floats:
        """Project; a vector that lights no unit at all becomes zero, far from everything."""
        hidden = np.maximum(vectors @ self.weight_ + self.bias_, np.float32(0.0))
        length = np.linalg.norm(hidden, axis=1, keepdims=True)
        unit: Floats = hidden / np.maximum(length, np.float32(1e-6))
        return unit


def _rounded(values: npt.NDArray[np.float64]) -> Floats:
    return values.astype(np.float16).astype(np.float32)
