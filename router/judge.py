"""The judge: one artefact, loaded, answering 'may the student answer this?' step by step.

``prejudge`` looks at the prompt with the static tier, in microseconds; ``refine`` asks the sentence
encoder where the static tier cannot tell; ``score`` looks at the student's gated prefix, and says
when that needs refining too. All are pure and thread-safe; ``refine`` is the one that takes a
millisecond, and belongs off the event loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from router.artefact import Artefact, load_artefact
from router.cascade import Bands
from router.certify import Certificate
from router.confidence import FLOOR, LengthScale, Prefix
from router.drift import Reference
from router.encoder import Encoders
from router.errors import ArtefactError, FitError
from router.memory import REMEMBERED, Memory
from router.minilm import sentence_part
from router.redact import DEFAULT, Redactor, parse_rules
from router.rows import StudentAnswer, usable
from router.template import Message, compiled_slots, fingerprint, variable_text
from router.tier import FEATURES, Look, Tier

REACH: Mapping[str, tuple[float, float]] = {
    "projected_similarity": (-1.0, 1.0),
    "similarity": (-1.0, 1.0),
    "energy": (-1e3, 1e3),
    "first_margin": (FLOOR, -FLOOR),
    "mean_logprob": (FLOOR, 0.0),
    "min_logprob": (FLOOR, 0.0),
    "low_logprob": (FLOOR, 0.0),
    "entropy": (0.0, 2.0),
    "length_surprise": (0.0, 50.0),
    "known_answer": (0.0, 1.0),
    "head_logprob": (FLOOR, 0.0),
}
"""Values that each feature can take."""

KEY_CHARS = 512
"""Of prompts that are remembered by what they say."""


@dataclass(frozen=True, slots=True)
class DecodeProfile:
    """The sampling under which the certificate was taken."""

    temperature: float
    top_p: float
    max_tokens_min: int


@dataclass(frozen=True, slots=True)
class Prejudgement:
    """What the prompt alone says.

    ``ood_score`` is P(out of distribution) by the highest tier that looked. ``undecided``: the
    static tier cannot tell, and the prompt has to be refined before anything is done with it.
    ``too_long``: longer than anything the task's prompts are like, and so out, unread and not kept
    in ``text``.
    """

    text: str
    template: str
    known_template: bool
    ood_score: float
    out: bool
    undecided: bool = False
    too_long: bool = False
    first: Look | None = None
    second: Look | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """P(disagree); where not ``settled``, refine the prompt and score again."""

    value: float
    settled: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The whole rule on one prompt and answer: served iff ``score`` is under the threshold.

    ``score`` is infinite where an earlier rule sends the request to the teacher. ``tier`` is the
    highest that looked.
    """

    pre: Prejudgement
    score: float
    tier: int


class Judge:
    """The deployed rule of one artefact."""

    def __init__(self, artefact: Artefact, encoders: Encoders) -> None:
        """Bind an artefact to the encoders that it pins.

        Raises:
            ArtefactError: an encoder is another one, or a part is missing.
        """
        self.artefact = artefact
        self.encoders = encoders
        try:
            self._bind(artefact.manifest, artefact.tensors)
        except (KeyError, TypeError, ValueError, FitError) as error:
            raise ArtefactError(f"{artefact.path}: the manifest lacks a part: {error}") from error

    @classmethod
    def load(cls, path: Path, encoders: Encoders) -> Judge:
        """Read, verify and bind the artefact at ``path``."""
        return cls(load_artefact(path), encoders)

    def _bind(self, manifest: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self._check_encoders(manifest["encoders"])
        self.task = str(manifest["task"])
        self.version = self.artefact.version
        self.student = manifest["student"]["name"] if manifest["student"] else None
        self.gate_tokens = int(manifest["gate_tokens"])
        self.profile = DecodeProfile(**manifest["decode_profile"])
        self.certificate = Certificate(**manifest["certificate"])
        self.threshold = self.certificate.tau if self.certificate.certified else None
        self.ood_cut: float | None = manifest["ood_cut"]
        self.max_chars = int(manifest["max_chars"])
        reference = manifest["reference"]
        self.reference = Reference.from_json(reference) if reference is not None else None
        self._templates = frozenset(manifest["templates"])
        self._slots = compiled_slots(manifest["slots"])
        self.redactor = Redactor(parse_rules(manifest.get("redact", DEFAULT)))
        self._length = LengthScale(**manifest["length"])
        classes = list(manifest["classes"])
        self.second = Tier.from_tensors(tensors, "second", classes, self.encoders.sentence)
        self.bands = Bands(**manifest["bands"]) if manifest["bands"] is not None else None
        self.first = (
            Tier.from_tensors(tensors, "first", classes, self.encoders.static)
            if self.bands is not None
            else None
        )
        _ = self.facts
        # Tensors of a shape that does not fit would otherwise be found by the first request.
        for tier in (self.first, self.second):
            if tier is not None:
                tier.look("probe")
        self.remember(REMEMBERED)

    def remember(self, prompts: int) -> None:
        """Keep what was seen of so many prompts. The same prompt looks the same, so this saves time
        and changes no verdict."""
        self._prompts = Memory[Prejudgement](prompts)
        self._first = Memory[Look](prompts)
        self._second = Memory[Look](prompts)

    def _check_encoders(self, pinned: Mapping[str, str]) -> None:
        for name in ("static", "sentence"):
            mine = getattr(self.encoders, name).digest
            if pinned[name] != mine:
                raise ArtefactError(
                    f"{self.artefact.path}: fitted with {name} encoder {pinned[name][:16]}…, this "
                    f"one is {mine[:16]}…; fit it again"
                )

    def prejudge(
        self, messages: Sequence[Message], tools: Any = None, response_format: Any = None
    ) -> Prejudgement:
        """Template, and what the static tier says of the prompt; redacted as at the fit."""

        def make() -> Prejudgement:
            clean = self.redactor.messages(messages)
            template = fingerprint(clean, tools, response_format, self._slots)
            return self.prejudge_text(variable_text(clean), template)

        if tools or response_format:
            return make()
        return self._prompts.recall(_key(messages), make)

    def prejudge_text(self, text: str, template: str) -> Prejudgement:
        """The same for a prompt whose parts are taken apart already."""
        known = template in self._templates
        if len(text) > self.max_chars:
            return Prejudgement("", template, known, 1.0, True, too_long=True)
        first = self.first
        if first is None or self.bands is None:
            return self.refine(Prejudgement(text, template, known, 1.0, True))
        look = self._first.recall(text, lambda: first.look(text))
        out = look.p_out >= self.bands.out_from
        undecided = self.bands.asks(look.p_out)
        return Prejudgement(text, template, known, look.p_out, out, undecided, first=look)

    def quick(self, pre: Prejudgement) -> bool:
        """Whether ``refine`` costs next to nothing: this prompt was looked at before."""
        return pre.second is not None or pre.too_long or self._second.knows(pre.text)

    def refine(self, pre: Prejudgement) -> Prejudgement:
        """The sentence encoder's word on a prompt; about a millisecond."""
        if pre.second is not None or pre.too_long:
            return pre
        look = self._second.recall(pre.text, lambda: self.second.look(pre.text))
        out = self.ood_cut is not None and look.p_out >= self.ood_cut
        return replace(pre, ood_score=look.p_out, out=out, undecided=False, second=look)

    def score(self, pre: Prejudgement, prefix: Prefix) -> Score:
        """P(student and teacher disagree), by the highest tier that looked."""
        if pre.second is not None:
            return Score(self.second.p_disagree(pre.second, prefix, self._length), True)
        if pre.first is None or self.first is None or self.bands is None:
            return Score(1.0, True)
        value = self.first.p_disagree(pre.first, prefix, self._length)
        return Score(value, not self.bands.doubts(value))

    def settle(self, pre: Prejudgement, prefix: Prefix) -> tuple[Prejudgement, float]:
        """``score``, refining where that is needed. A prompt that only the sentence encoder finds
        to be out scores infinite."""
        score = self.score(pre, prefix)
        if score.settled:
            return pre, score.value
        refined = self.refine(pre)
        return refined, float("inf") if refined.out else self.score(refined, prefix).value

    def decide(self, messages: Sequence[Message], answer: StudentAnswer | None) -> Decision:
        """The whole rule, offline: exactly what serving does."""
        prefix = Prefix.of(answer, self.gate_tokens) if answer and usable(answer) else None
        pre, score = self.resolve(self.prejudge(messages), prefix)
        return Decision(pre, score, 2 if pre.second is not None else 1)

    def resolve(self, pre: Prejudgement, prefix: Prefix | None) -> tuple[Prejudgement, float]:
        """Everything that serving does with a prejudged prompt and the student's prefix, in one
        go; infinite where an earlier rule sends the request to the teacher, or nothing could be
        served."""
        if pre.undecided:
            pre = self.refine(pre)
        if prefix is None or pre.out or not pre.known_template:
            return pre, float("inf")
        return self.settle(pre, prefix)

    def contributions(self, pre: Prejudgement, prefix: Prefix | None) -> dict[str, float]:
        """Additive log-odds of each feature towards 'teacher', by the highest tier that looked."""
        if pre.second is not None:
            return self.second.contributions(pre.second, prefix, self._length)
        if pre.first is not None and self.first is not None:
            return self.first.contributions(pre.first, prefix, self._length)
        return {}

    def cut(self, pre: Prejudgement) -> float | None:
        """The P(out) from which the tier that looked sends prompts to the teacher."""
        if pre.second is not None or self.bands is None:
            return self.ood_cut
        return self.bands.out_from

    def flips(self, pre: Prejudgement, prefix: Prefix) -> dict[str, float]:
        """What each feature, alone, would have to be for the verdict to turn: the value at which
        the deciding tier's score meets the threshold. Features that cannot turn it by themselves
        are left out."""
        tier, look = (
            (self.second, pre.second) if pre.second is not None else (self.first, pre.first)
        )
        if tier is None or look is None or tier.combine is None or self.threshold is None:
            return {}
        model, found = tier.combine, tier.all_features(look, prefix, self._length)
        wanted = float(np.log(self.threshold / max(1.0 - self.threshold, 1e-12)))
        missing = wanted - float(model.decision_function(np.array(found)))
        values = {}
        for index, name in enumerate(FEATURES):
            coefficient = float(model.coef_[index])
            if abs(coefficient) < 1e-6:
                continue
            value = float(found[index]) + missing / coefficient * float(model.scale_[index])
            low, high = REACH[name]
            if low <= value <= high:
                values[name] = value
        return values

    @property
    def facts(self) -> dict[str, Any]:
        """What the certificate rests on, for ``/admin/tasks``: hashes, profile, splits, cascade."""
        manifest = self.artefact.manifest
        names = (
            "student", "encoders", "gate_tokens", "variable", "max_chars", "slots", "redact",
            "decode_profile", "splits", "cascade",
        )  # fmt: skip
        return {"sha256": self.artefact.digest, **{name: manifest.get(name) for name in names}}

    def nearest(self, text: str, count: int = 5) -> list[tuple[float, Mapping[str, Any]]]:
        """The nearest training prompts: (cosine similarity, prompt row), nearest first."""
        vector = sentence_part(self.encoders.sentence.encode([text]))[0]
        similarity = self.artefact.tensors["prompts"].astype(np.float32) @ vector
        order = np.argsort(-similarity)[:count]
        return [(float(similarity[i]), self.artefact.prompts[i]) for i in order]


def _key(messages: Sequence[Message]) -> Hashable:
    """What a prompt is remembered by: itself, or a digest, lest a long one take more room."""
    said = tuple([part for m in messages for part in (m.role, m.content)])
    if sum(map(len, said)) <= KEY_CHARS:
        return said
    whole = "".join(f"{len(part)} {part}" for part in said)
    return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()
