"""The judge: one artefact, loaded, answering 'may the student answer this?' in two steps.

``prejudge`` looks at the prompt before any student latency is paid; ``score`` looks at the
student's gated prefix. Both are pure and thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.artefact import Artefact, load_artefact
from router.certify import Certificate
from router.confidence import NAMES, SIGNS, LengthScale, Prefix, confidence_features
from router.distance import Distance, LinearHead, NearestPrompts
from router.drift import Reference
from router.encoder import Encoder
from router.errors import ArtefactError
from router.logistic import Logistic
from router.outlier import outlier_probability
from router.template import Message, fingerprint, variable_text

DISTANCE_NAMES = ("similarity", "energy")
FEATURES = DISTANCE_NAMES + NAMES
FEATURE_SIGNS = (-1, -1, *SIGNS)
"""Near, familiar and confident never speak for the teacher, whatever a small sample says."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DecodeProfile:
    """The sampling under which the certificate was taken."""

    temperature: float
    top_p: float
    max_tokens_min: int


@dataclass(frozen=True, slots=True)
class Prejudgement:
    """What the prompt alone says.

    ``ood_score`` is P(out of distribution); ``features`` has shape (2,), ``head_logprobs``
    (classes,).
    """

    template: str
    known_template: bool
    ood_score: float
    out: bool
    features: Vector
    head_logprobs: npt.NDArray[np.float32]


class Judge:
    """The deployed rule of one artefact."""

    def __init__(self, artefact: Artefact, encoder: Encoder) -> None:
        """Bind an artefact to the encoder that it pins.

        Raises:
            ArtefactError: the encoder is another one, or a part is missing.
        """
        self.artefact = artefact
        self.encoder = encoder
        manifest = artefact.manifest
        try:
            self._bind(manifest, artefact.tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{artefact.path}: the manifest lacks a part: {error}") from error

    @classmethod
    def load(cls, path: Path, encoder: Encoder) -> Judge:
        """Read, verify and bind the artefact at ``path``."""
        return cls(load_artefact(path), encoder)

    def _bind(self, manifest: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        pinned = manifest["encoder"]["digest"]
        if pinned != self.encoder.digest:
            raise ArtefactError(
                f"{self.artefact.path}: fitted with encoder {pinned[:16]}…, this one is "
                f"{self.encoder.digest[:16]}…; fit it again"
            )
        self.task = str(manifest["task"])
        self.version = self.artefact.version
        self.student = manifest["student"]["name"] if manifest["student"] else None
        self.gate_tokens = int(manifest["gate_tokens"])
        self.profile = DecodeProfile(**manifest["decode_profile"])
        self.certificate = Certificate(**manifest["certificate"])
        self.threshold = self.certificate.tau if self.certificate.certified else None
        self.ood_cut = manifest["ood_cut"]
        self._templates = frozenset(manifest["templates"])
        self._distance = _distance(tensors, list(manifest["classes"]))
        self._outlier = _logistic(tensors, "outlier")
        self._combine = _logistic(tensors, "combine") if "combine.coef" in tensors else None
        self._length = LengthScale(**manifest["length"])
        reference = manifest.get("reference")
        self.reference = Reference.from_json(reference) if reference is not None else None
        self._check_shapes()

    def _check_shapes(self) -> None:
        if len(self._outlier.coef_) != len(DISTANCE_NAMES) or (
            self._combine is not None and len(self._combine.coef_) != len(FEATURES)
        ):
            raise ArtefactError(f"{self.artefact.path}: fitted with another set of features")

    def prejudge(
        self, messages: Sequence[Message], tools: Any = None, response_format: Any = None
    ) -> Prejudgement:
        """Template, distance and P(out) of one prompt."""
        template = fingerprint(messages, tools, response_format)
        return self.prejudge_batch([variable_text(messages)], [template])[0]

    def prejudge_batch(self, texts: Sequence[str], templates: Sequence[str]) -> list[Prejudgement]:
        """The same for many prompts at once."""
        scores = self._distance.scores(self.encoder.encode(texts))
        features = scores.features().astype(np.float64)
        outs = outlier_probability(self._outlier, scores)
        return [
            Prejudgement(
                template,
                template in self._templates,
                float(outs[row]),
                self.ood_cut is not None and float(outs[row]) >= self.ood_cut,
                features[row],
                scores.head_logprobs[row],
            )
            for row, template in enumerate(templates)
        ]

    def features(self, pre: Prejudgement, prefix: Prefix) -> Vector:
        """All features of a decision, in the order of ``FEATURES``, shape (10,)."""
        own = confidence_features(prefix, self._length, self._distance.classes, pre.head_logprobs)
        return np.concatenate([pre.features, own])

    def score(self, pre: Prejudgement, prefix: Prefix) -> float:
        """P(student and teacher disagree); P(out) where the artefact is distance-only."""
        if self._combine is None:
            return pre.ood_score
        return float(self._combine.predict_proba(self.features(pre, prefix)))

    def contributions(self, pre: Prejudgement, prefix: Prefix | None) -> dict[str, float]:
        """Additive log-odds of each feature towards 'teacher', for explanations."""
        if prefix is None or self._combine is None:
            parts = self._outlier.contributions(pre.features)
            return dict(zip(DISTANCE_NAMES, map(float, parts), strict=True))
        parts = self._combine.contributions(self.features(pre, prefix))
        return dict(zip(FEATURES, map(float, parts), strict=True))

    def nearest(self, text: str, count: int = 5) -> list[tuple[float, Mapping[str, Any]]]:
        """The nearest training prompts: (cosine similarity, prompt row), nearest first."""
        vector = self.encoder.encode([text])[0]
        tensors = self.artefact.tensors
        prompts = tensors.get("prompts", tensors["points"])
        similarity = prompts.astype(np.float32) @ vector
        order = np.argsort(-similarity)[:count]
        return [(float(similarity[i]), self.artefact.prompts[i]) for i in order]


def _logistic(tensors: Mapping[str, Any], name: str) -> Logistic:
    return Logistic.from_state(
        tensors[f"{name}.mean"],
        tensors[f"{name}.scale"],
        tensors[f"{name}.coef"],
        float(tensors[f"{name}.intercept"][0]),
    )


def _distance(tensors: Mapping[str, Any], classes: list[str]) -> Distance:
    nearest = NearestPrompts()
    nearest.points_ = tensors["points"].astype(np.float32)
    nearest.k_ = int(tensors["neighbours"][0])
    if not classes:
        return Distance(nearest, None)
    head = LinearHead()
    head.classes_ = classes
    head.coef_ = tensors["head.coef"]
    head.intercept_ = tensors["head.intercept"]
    if len(head.coef_) != len(classes):
        raise ValueError("classes and head differ in number")
    return Distance(nearest, head)
