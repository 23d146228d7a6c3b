"""One tier of the judge: an encoder, the distances in its space, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.confidence import NAMES, SIGNS, LengthScale, Prefix, confidence_features
from router.distance import DISTANCE_NAMES, Categorical, Distance, NearestPrompts
from router.encoder import Encoder
from router.head import LinearHead
from router.index import PromptIndex
from router.logistic import Logistic
from router.outlier import SIGNS as DISTANCE_SIGNS
from router.projection import Projection

FEATURES = DISTANCE_NAMES + NAMES
FEATURE_SIGNS = (*DISTANCE_SIGNS, *SIGNS)
"""Near, familiar and confident never speak for the teacher, whatever a small sample says."""

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Look:
    """What a tier sees in one prompt: its three distance features, P(out), and the head's
    log-probabilities, shape (classes,)."""

    features: tuple[float, ...]
    p_out: float
    head_logprobs: npt.NDArray[np.float32]


class Tier:
    """Scores prompts and, with the student's prefix, answers."""

    def __init__(
        self, encoder: Encoder, distance: Distance, outlier: Logistic, combine: Logistic | None
    ) -> None:
        """Bind the parts; ``combine`` is None where no student answers were there to fit it.

        Raises:
            ValueError: a part was fitted with another set of features.
        """
        if len(outlier.coef_) != len(DISTANCE_NAMES) or (
            combine is not None and len(combine.coef_) != len(FEATURES)
        ):
            raise ValueError("fitted with another set of features")
        self.encoder = encoder
        self.distance = distance
        self.outlier = outlier
        self.combine = combine

    def look(self, text: str) -> Look:
        """One prompt."""
        features, head_logprobs = self.distance.of_prompt(self.encoder.encode([text])[0])
        return Look(features, self.outlier.probability(features), head_logprobs)

    def look_all(self, texts: Sequence[str]) -> list[Look]:
        """Many prompts, one at a time: a fit sees the very numbers that serving will."""
        return [self.look(text) for text in texts]

    def all_features(self, look: Look, prefix: Prefix, length: LengthScale) -> tuple[float, ...]:
        """Every feature of a decision, in the order of ``FEATURES``."""
        own = confidence_features(prefix, length, self.distance.classes, look.head_logprobs)
        return *look.features, *own

    def p_disagree(self, look: Look, prefix: Prefix, length: LengthScale) -> float:
        """P(student and teacher disagree); P(out) where nothing was combined."""
        if self.combine is None:
            return look.p_out
        return self.combine.probability(self.all_features(look, prefix, length))

    def contributions(
        self, look: Look, prefix: Prefix | None, length: LengthScale
    ) -> dict[str, float]:
        """Additive log-odds of each feature towards 'teacher'."""
        if prefix is None or self.combine is None:
            parts = self.outlier.contributions(np.array(look.features))
            return dict(zip(DISTANCE_NAMES, map(float, parts), strict=True))
        parts = self.combine.contributions(np.array(self.all_features(look, prefix, length)))
        return dict(zip(FEATURES, map(float, parts), strict=True))

    def tensors(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The state as an artefact stores it, under ``name.``."""
        nearest, parts = self.distance.nearest, self.distance.categorical
        found: dict[str, npt.NDArray[Any]] = {
            f"{name}.points": nearest.points_.astype(np.float16),
            f"{name}.neighbours": np.array([nearest.k_]),
            **self.outlier.tensors(f"{name}.outlier"),
        }
        if nearest.index_ is not None:
            found[f"{name}.index"] = nearest.index_.state()
        if parts is not None:
            found |= {
                f"{name}.projection.weight": parts.projection.weight_.astype(np.float16),
                f"{name}.projection.bias": parts.projection.bias_.astype(np.float16),
                f"{name}.projection.points": parts.nearest.points_.astype(np.float16),
                f"{name}.head.coef": parts.head.coef_,
                f"{name}.head.intercept": parts.head.intercept_,
            }
        if self.combine is not None:
            found |= self.combine.tensors(f"{name}.combine")
        return found

    @classmethod
    def from_tensors(
        cls, tensors: Tensors, name: str, classes: list[str], encoder: Encoder
    ) -> Tier:
        """Rebuild from what ``tensors`` gave.

        Raises:
            KeyError: a part is missing.
            ValueError: parts do not fit each other.
        """
        raw = tensors.get(f"{name}.index")
        index = None if raw is None else PromptIndex.restored(raw, encoder.index_width)
        nearest = NearestPrompts.from_state(
            tensors[f"{name}.points"], int(tensors[f"{name}.neighbours"][0]), index
        )
        parts = _categorical(tensors, name, classes) if classes else None
        combine = f"{name}.combine"
        return cls(
            encoder,
            Distance(nearest, parts),
            Logistic.from_tensors(tensors, f"{name}.outlier"),
            Logistic.from_tensors(tensors, combine) if f"{combine}.coef" in tensors else None,
        )


def _categorical(tensors: Tensors, name: str, classes: list[str]) -> Categorical:
    head = LinearHead()
    head.classes_ = classes
    head.coef_ = tensors[f"{name}.head.coef"]
    head.intercept_ = tensors[f"{name}.head.intercept"]
    if len(head.coef_) != len(classes):
        raise ValueError("classes and head differ in number")
    projection = Projection.from_state(
        tensors[f"{name}.projection.weight"], tensors[f"{name}.projection.bias"]
    )
    points = NearestPrompts.from_state(tensors[f"{name}.projection.points"], 1)
    return Categorical(projection, points, head)
