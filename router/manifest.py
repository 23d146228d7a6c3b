"""What a routing artefact's manifest says: everything that decides it besides the tensors."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from router.cascade import Bands
from router.certify import Certificate
from router.comparator import Name
from router.confidence import LengthScale
from router.data import Data
from router.drift import Reference
from router.encoder import Encoders
from router.judge import DecodeProfile
from router.redact import DEFAULT, Redaction, rules_json
from router.rows import Row
from router.tier import FEATURES, Tier


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Everything that decides an artefact besides the rows.

    ``promotion`` counts the certificates of a renewed promise (see ``Certificate``); ``weights``
    says what becomes of unequal draw probabilities; ``slots`` maps names to regular expressions of
    the fixed part's variable places; ``redact`` says what surrogates replace before anything else;
    ``cascade`` switches the static tier off for comparisons.
    """

    task: str
    version: str
    comparator: Name = "label"
    alpha: float = 0.05
    delta: float = 0.05
    promotion: int | None = None
    weights: Literal["thin", "betting"] = "thin"
    gate_tokens: int = 32
    max_tokens_min: int = 16
    student: str | None = None
    student_sha256: str | None = None
    slots: Mapping[str, str] = field(default_factory=dict)
    redact: tuple[Redaction, ...] = DEFAULT
    cascade: bool = True
    seed: int = 20261124


@dataclass(frozen=True, slots=True)
class Rule:
    """Everything that is fixed before the threshold."""

    first: Tier
    second: Tier
    length: LengthScale
    cut: float | None
    bands: Bands | None
    grid: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Certified:
    """What the calibrate rows gave. ``cascade``: on them, the share that asks the second tier and
    the share of verdicts that differ from the second tier's alone."""

    certificate: Certificate
    reference: Reference | None
    cascade: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the fit started from."""

    settings: FitSettings
    encoders: Encoders
    templates: Sequence[str]
    max_chars: int
    data: Data
    slice_of: Callable[[Row], str]


def manifest(facts: Facts, rule: Rule, certified: Certified) -> dict[str, Any]:
    """The manifest as plain values; the files' hashes come with saving."""
    s = facts.settings
    splits = {
        name: _described(getattr(facts.data, name), facts.slice_of)
        for name in ("train", "combine", "calibrate")
    }
    student = {"name": s.student, "sha256": s.student_sha256} if s.student else None
    return {
        "task": s.task,
        "version": s.version,
        "kind": "distance" if rule.second.combine is None else "combined",
        "encoders": {
            "static": facts.encoders.static.digest,
            "sentence": facts.encoders.sentence.digest,
        },
        "student": student,
        "gate_tokens": s.gate_tokens,
        "variable": "last user message, then earlier turns, newest first",
        "max_chars": facts.max_chars,
        "slots": dict(s.slots),
        "redact": rules_json(s.redact),
        "templates": list(facts.templates),
        "decode_profile": asdict(DecodeProfile(0.0, 1.0, s.max_tokens_min)),
        "classes": rule.second.distance.classes,
        "features": list(FEATURES),
        "length": asdict(rule.length),
        "ood_cut": rule.cut,
        "bands": None if rule.bands is None else asdict(rule.bands),
        "cascade": certified.cascade,
        "reference": certified.reference.to_json() if certified.reference else None,
        "seed": s.seed,
        "splits": splits,
        "certificate": certified.certificate.to_json(),
    }


def _described(rows: Sequence[Row], slice_of: Callable[[Row], str]) -> dict[str, Any]:
    lines = (json.dumps([asdict(m) for m in r.messages] + [r.completion]) for r in rows)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    mix = Counter(slice_of(row) for row in rows)
    return {"rows": len(rows), "sha256": digest, "mix": dict(sorted(mix.items()))}
