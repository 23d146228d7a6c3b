"""Fit a routing artefact from train, combine and calibrate rows.

Order matters and is the certificate's ground: distance and outlier model on *train*; the
out-of-distribution cut, the combination and the grid on *combine*; the threshold, last and once,
on *calibrate*.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.artefact import Artefact, save_artefact
from router.certify import Budget, Certificate, certify, threshold_grid
from router.comparator import Name, comparator
from router.confidence import LengthScale, Prefix, confidence_features
from router.data import Data, answered, check, closed_labels, thinned
from router.distance import Distance, DistanceScores
from router.encoder import Encoder
from router.judge import FEATURE_SIGNS, FEATURES, DecodeProfile
from router.logistic import Logistic
from router.outlier import fit_outlier, outlier_probability
from router.rows import Row, usable
from router.template import fingerprint

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Progress = Callable[[str], None]

OOD_LOSS = 0.005
"""Share of combine rows that the distance cut may take although the student agreed: what it
costs in coverage to answer plain outliers without paying the student's latency."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Everything that decides an artefact besides the rows."""

    task: str
    version: str
    comparator: Name = "label"
    alpha: float = 0.05
    delta: float = 0.05
    gate_tokens: int = 32
    max_tokens_min: int = 16
    student: str | None = None
    student_sha256: str | None = None
    seed: int = 20261124


@dataclass(frozen=True, slots=True)
class _Split:
    """One split, embedded and judged by the distance part of the rule."""

    rows: Sequence[Row]
    scores: DistanceScores
    ood: Floats
    blocked: Bools
    disagrees: Bools


def fit_artefact(
    data: Data, settings: FitSettings, encoder: Encoder, out: Path, progress: Progress
) -> Artefact:
    """Fit, certify and save; returns the artefact loaded back.

    Raises:
        FitError: rows cannot support the fit.
        ArtefactError: ``out`` exists or cannot be written.
    """
    check(data)
    fitter = _Fitter(data, settings, encoder, progress)
    manifest, tensors = fitter.run()
    prompts = [{"text": row.text, "completion": row.completion} for row in data.train]
    return save_artefact(out, manifest, tensors, prompts)


class _Fitter:
    def __init__(
        self, data: Data, settings: FitSettings, encoder: Encoder, progress: Progress
    ) -> None:
        self._data = data
        self._settings = settings
        self._encoder = encoder
        self._say = progress
        self._agree = comparator(settings.comparator)
        self._templates = sorted({fingerprint(row.messages) for row in data.train})

    def run(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        self._say(f"embedding {len(self._data.train)} training prompts")
        vectors = self._encoder.encode([row.text for row in self._data.train])
        labels = closed_labels(self._data.train)
        self._say("fitting distance" + (f" over {len(set(labels))} answers" if labels else ""))
        self._distance = Distance.fitted(vectors, labels, self._settings.seed)
        self._outlier = fit_outlier(vectors, labels, self._settings.seed)
        parts = self._distance_tensors(vectors)
        if not answered(self._data):
            return self._distance_only(parts)
        self._say("combining distance and the student's confidence")
        combine = self._split(self._data.combine)
        self._length = LengthScale.fitted([self._prefix(row) for row in combine.rows])
        model = self._combination(combine)
        cut = _ood_cut(combine)
        grid = self._grid(combine, model, cut)
        self._say(f"certifying on {len(self._data.calibrate)} rows")
        certificate = self._certificate(model, cut, grid)
        if model is not None:
            parts |= _logistic_tensors("combine", model)
        return self._manifest(certificate, cut, self._length, model), parts

    def _distance_only(
        self, parts: dict[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        reason = "no student answers in the rows: nothing shows where the student agrees"
        s = self._settings
        none = Certificate("none", s.alpha, s.delta, s.comparator, reason=reason)
        return self._manifest(none, None, LengthScale(0.0, 1.0), None), parts

    def _split(self, rows: Sequence[Row]) -> _Split:
        scores = self._distance.scores(self._encoder.encode([row.text for row in rows]))
        known = set(self._templates)
        return _Split(
            rows,
            scores,
            outlier_probability(self._outlier, scores),
            np.array([fingerprint(r.messages) not in known or not usable(r.student) for r in rows]),
            np.array([not self._agrees(row) for row in rows]),
        )

    def _agrees(self, row: Row) -> bool:
        assert row.student is not None and row.completion is not None
        return self._agree(row.student.text, row.completion)

    def _prefix(self, row: Row) -> Prefix:
        assert row.student is not None
        return Prefix.of(row.student, self._settings.gate_tokens)

    def _features(self, split: _Split) -> Floats:
        distance = split.scores.features().astype(np.float64)
        own = [
            confidence_features(
                self._prefix(row),
                self._length,
                self._distance.classes,
                split.scores.head_logprobs[i],
            )
            for i, row in enumerate(split.rows)
        ]
        return np.hstack([distance, np.array(own)])

    def _combination(self, combine: _Split) -> Logistic | None:
        """None where the student never, or always, agrees: then P(out) is the score."""
        if combine.disagrees.all() or not combine.disagrees.any():
            return None
        weight = np.array([row.weight for row in combine.rows])
        return Logistic().fit(self._features(combine), combine.disagrees, weight, FEATURE_SIGNS)

    def _score(self, split: _Split, model: Logistic | None, cut: float | None) -> Floats:
        score = split.ood if model is None else model.predict_proba(self._features(split))
        stopped = split.blocked if cut is None else split.blocked | (split.ood >= cut)
        return np.where(stopped, np.inf, score)

    def _grid(self, combine: _Split, model: Logistic | None, cut: float | None) -> Floats:
        scores = self._score(combine, model, cut)
        return threshold_grid(scores, self._budget(), len(self._calibration()))

    def _budget(self) -> Budget:
        s = self._settings
        return Budget(s.alpha, s.delta, s.comparator)

    def _calibration(self) -> list[Row]:
        return thinned(self._data.calibrate, self._settings.seed)

    def _certificate(self, model: Logistic | None, cut: float | None, grid: Floats) -> Certificate:
        split = self._split(self._calibration())
        return certify(
            self._score(split, model, cut),
            split.disagrees,
            grid,
            self._budget(),
            slices=[self._slice(row) for row in split.rows],
            groups=len({row.text for row in split.rows}),
        )

    def _slice(self, row: Row) -> str:
        if row.slice is not None:
            return row.slice
        classes = self._distance.classes
        return "in_domain" if not classes or row.completion in classes else "out_of_domain"

    def _distance_tensors(self, vectors: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        points = self._distance.nearest.points_
        tensors: dict[str, npt.NDArray[Any]] = {
            "points": points.astype(np.float16),
            "neighbours": np.array([self._distance.nearest.k_]),
            **_logistic_tensors("outlier", self._outlier),
        }
        if len(points) != len(vectors):  # otherwise the points are the prompts
            tensors["prompts"] = vectors.astype(np.float16)
        if self._distance.head is not None:
            tensors["head.coef"] = self._distance.head.coef_
            tensors["head.intercept"] = self._distance.head.intercept_
        return tensors

    def _manifest(
        self,
        certificate: Certificate,
        cut: float | None,
        length: LengthScale,
        model: Logistic | None,
    ) -> dict[str, Any]:
        s = self._settings
        splits = {
            name: self._described(getattr(self._data, name))
            for name in ("train", "combine", "calibrate")
        }
        student = {"name": s.student, "sha256": s.student_sha256} if s.student else None
        return {
            "task": s.task,
            "version": s.version,
            "kind": "distance" if model is None else "combined",
            "encoder": {"name": "all-MiniLM-L6-v2", "digest": self._encoder.digest},
            "student": student,
            "gate_tokens": s.gate_tokens,
            "variable": "last_user",
            "templates": self._templates,
            "decode_profile": asdict(DecodeProfile(0.0, 1.0, s.max_tokens_min)),
            "classes": self._distance.classes,
            "features": list(FEATURES),
            "length": asdict(length),
            "ood_cut": cut,
            "seed": s.seed,
            "splits": splits,
            "certificate": certificate.to_json(),
        }

    def _described(self, rows: Sequence[Row]) -> dict[str, Any]:
        lines = (json.dumps([asdict(m) for m in r.messages] + [r.completion]) for r in rows)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        mix = Counter(self._slice(row) for row in rows)
        return {"rows": len(rows), "sha256": digest, "mix": dict(sorted(mix.items()))}


def _ood_cut(combine: _Split) -> float | None:
    """The lowest P(out) above which at most ``OOD_LOSS`` of all rows had agreed."""
    agreed = np.sort(combine.ood[~combine.disagrees])
    if not len(agreed):
        return None
    allowed = int(OOD_LOSS * len(combine.rows))
    return float(np.nextafter(agreed[-1 - min(allowed, len(agreed) - 1)], np.inf))


def _logistic_tensors(name: str, model: Logistic) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{name}.mean": model.mean_,
        f"{name}.scale": model.scale_,
        f"{name}.coef": model.coef_,
        f"{name}.intercept": np.array([model.intercept_]),
    }
