"""A classifier student: sentence encoder and linear head, for answers out of a closed set.

Milliseconds on one core, no language model. Its answer is one token, the label, whose
log-probability and alternatives are the head's: what the judge reads of a language model's answer
it reads of this one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.digest import file_sha256, lines_sha256
from router.confidence import FLOOR, TOP_LOGPROBS
from router.encoder import Encoders
from router.folders import new_folder
from router.rows import Row, StudentAnswer, TokenLogprob
from router.threads import one_thread

FORMAT = "understudy-classifier/1"
MANIFEST = "manifest.json"
TENSORS = "head.safetensors"
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse L2 penalties that the search tries on dev rows."""
MIN_OF_LABEL = 3
"""Training rows below which an answer is left to the teacher."""
LONGEST_LABEL = 200

Floats = npt.NDArray[np.float32]


class ClassifierError(Exception):
    """The rows cannot give a classifier, or a folder holds none."""


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """What decides the head besides the data."""

    seed: int = 20261124
    penalties: tuple[float, ...] = PENALTIES


@dataclass(frozen=True, slots=True)
class Classifier:
    """A loaded version: ``weights`` have shape (classes, d), ``bias`` (classes,)."""

    labels: Sequence[str]
    weights: Floats
    bias: Floats
    encoders: Encoders

    def answer(self, text: str) -> StudentAnswer:
        """The likeliest label, with log-probabilities in nats."""
        best = self.alternatives(text)
        label, logprob = best[0]
        token = TokenLogprob(label, logprob, tuple(value for _, value in best))
        return StudentAnswer(label, (token,), "stop")

    def alternatives(self, text: str) -> list[tuple[str, float]]:
        """The likeliest labels with their log-probabilities, best first."""
        logits = embedded(self.encoders, [text])[0] @ self.weights.T + self.bias
        logprobs = logits - _logsumexp(logits)
        best = np.argsort(-logprobs)[:TOP_LOGPROBS]
        return [(self.labels[int(i)], max(float(logprobs[i]), FLOOR)) for i in best]


def embedded(encoders: Encoders, texts: Sequence[str]) -> Floats:
    """Both encoders' vectors side by side, each of unit length: float32, shape (n, d)."""
    parts = [encoders.sentence.encode(texts), encoders.static.encode(texts)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Answers that occur often enough to be learned; empty where the task's answers are no closed
    set: where less than four fifths of the rows have one of them."""
    counts = Counter(row.completion or "" for row in rows)
    often = {a for a, n in counts.items() if n >= MIN_OF_LABEL and 0 < len(a) <= LONGEST_LABEL}
    covered = sum(counts[answer] for answer in often)
    return sorted(often) if len(often) >= 2 and covered >= 0.8 * len(rows) else []


def train_classifier(
    name: str,
    rows: Sequence[Row],
    dev: Sequence[Row],
    encoders: Encoders,
    out: Path,
    settings: ClassifierSettings,
) -> dict[str, Any]:
    """Fit a head and write it to ``out``; return its manifest. The penalty is the one that agrees
    most on ``dev``; without dev rows it is 1 / 10.

    Raises:
        ClassifierError: the answers are no closed set.
        OSError: ``out`` exists or cannot be written.
    """
    labels = labels_of(rows)
    if not labels:
        raise ClassifierError("the answers are no closed set: too many occur once or twice")
    started = time.monotonic()
    known = set(labels)
    kept = [row for row in rows if row.completion in known]
    vectors = embedded(encoders, [row.text for row in kept])
    numbers = {label: i for i, label in enumerate(labels)}
    answers = np.array([numbers[row.completion or ""] for row in kept])
    seen = embedded(encoders, [row.text for row in dev]) if dev else None
    tried: list[dict[str, float]] = []
    best: tuple[float, float, Floats, Floats] | None = None
    with one_thread():
        for penalty in settings.penalties if dev else (10.0,):
            weights, bias = _fitted(vectors, answers, penalty, settings.seed)
            agreement = _agreement(seen, dev, labels, weights, bias) if seen is not None else 0.0
            tried.append({"c": penalty, "dev_agreement": round(agreement, 5)})
            if best is None or agreement > best[0]:
                best = agreement, penalty, weights, bias
    assert best is not None
    with new_folder(out) as staging:
        return _written(
            staging, name, kept, labels, encoders, settings, best,
            {"tried": tried, "rows_left_out": len(rows) - len(kept), "dev_rows": len(dev),
             "train_seconds": round(time.monotonic() - started, 2)},
        )  # fmt: skip


def load_classifier(folder: Path, encoders: Encoders) -> Classifier:
    """Read and verify a version.

    Raises:
        ClassifierError: it is none, was changed, or is for other encoders.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        raw = (folder / TENSORS).read_bytes()
        if manifest["format"] != FORMAT:
            raise ClassifierError(f"{folder}: format {manifest['format']!r} is not {FORMAT!r}")
        if hashlib.sha256(raw).hexdigest() != manifest["files"][TENSORS]:
            raise ClassifierError(f"{folder / TENSORS}: was changed after training")
        if manifest["encoders"] != _digests(encoders):
            raise ClassifierError(f"{folder}: trained on other encoders; train it again")
        tensors = load(raw)
        labels = [str(label) for label in manifest["labels"]]
        weights, bias = tensors["weights"], tensors["bias"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ClassifierError(f"{folder}: is no classifier: {error}") from error
    if weights.shape[0] != len(labels) or bias.shape != (len(labels),):
        raise ClassifierError(f"{folder}: labels and weights do not fit together")
    return Classifier(labels, weights, bias, encoders)


def _fitted(
    vectors: Floats, answers: npt.NDArray[np.int64], penalty: float, seed: int
) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, max_iter=400, random_state=seed)
    model.fit(vectors, answers)
    weights, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
    if len(weights) == 1:  # two classes: scikit-learn keeps one row, the second class's log-odds
        weights = np.concatenate([-weights / 2, weights / 2])
        bias = np.concatenate([-bias / 2, bias / 2])
    return weights, bias


def _agreement(
    vectors: Floats, rows: Sequence[Row], labels: Sequence[str], weights: Floats, bias: Floats
) -> float:
    said = (vectors @ weights.T + bias).argmax(axis=1)
    right = [labels[int(i)] == row.completion for i, row in zip(said, rows, strict=True)]
    return sum(right) / len(right)


def _written(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    labels: list[str],
    encoders: Encoders,
    settings: ClassifierSettings,
    best: tuple[float, float, Floats, Floats],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    from safetensors.numpy import save

    agreement, penalty, weights, bias = best
    # scikit-learn's coefficients lie column by column, and safetensors writes memory as it lies.
    tensors = {"weights": np.ascontiguousarray(weights), "bias": np.ascontiguousarray(bias)}
    (folder / TENSORS).write_bytes(save(tensors))
    examples = (json.dumps([[asdict(m) for m in r.messages], r.completion]) for r in rows)
    manifest = {
        "format": FORMAT,
        "name": name,
        "encoders": _digests(encoders),
        "labels": labels,
        "rows": len(rows),
        "data_sha256": lines_sha256(examples),
        "settings": {**asdict(settings), "c": penalty},
        "metrics": {"dev_agreement": round(agreement, 5), **metrics},
        "files": {TENSORS: file_sha256(folder / TENSORS)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def _digests(encoders: Encoders) -> dict[str, str]:
    return {"static": encoders.static.digest, "sentence": encoders.sentence.digest}


def _logsumexp(logits: npt.NDArray[Any]) -> float:
    top = float(logits.max())
    return top + float(np.log(np.exp(logits - top).sum()))
