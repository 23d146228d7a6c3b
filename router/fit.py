"""Fit a routing artefact from train, combine and calibrate rows.

Order matters and is the certificate's ground: distance and outlier models of both tiers on
*train*; the out-of-distribution cut, the combinations, the cascade's bands and the grid on
*combine*; the threshold, last and once, on *calibrate*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.agreement import false_agree, row_comparator
from router.artefact import Artefact, save_artefact
from router.cascade import Trial, cascade_score, fit_bands, share_asked
from router.certify import (
    Budget,
    Calibration,
    Certificate,
    certify,
    risk_p_value,
    threshold_grid,
)
from router.confidence import LengthScale, Prefix
from router.data import Data, answered, check, closed_labels, redacted, thinned
from router.distance import Distance
from router.drift import Reference
from router.encoder import Encoder, Encoders
from router.logistic import Logistic
from router.manifest import Certified, Facts, FitSettings, Rule, manifest
from router.minilm import sentence_part
from router.outlier import fit_outlier
from router.redact import Redactor
from router.rows import Row, usable
from router.template import compiled_slots, fingerprint
from router.text import Vectors
from router.threads import one_thread
from router.tier import FEATURE_SIGNS, Look, Tier

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Progress = Callable[[str], None]

OOD_LOSS = 0.005
"""Share of combine rows that the distance cut may take although they would be served: what it
costs in coverage to answer plain outliers without paying the student's latency."""
LONGER = 1.5
MIN_MAX_CHARS = 128
"""A prompt of more than ``LONGER`` times the longest training prompt (at least so many characters)
is out, unread: padding would push what matters past the encoders' windows."""


@dataclass(frozen=True, slots=True)
class _Split:
    """One split as a tier sees it."""

    looks: Sequence[Look]
    scores: Floats

    @property
    def out(self) -> Floats:
        return np.array([look.p_out for look in self.looks])


def fit_artefact(
    data: Data, settings: FitSettings, encoders: Encoders, out: Path, progress: Progress
) -> Artefact:
    """Fit, certify and save; returns the artefact loaded back.

    Raises:
        FitError: rows cannot support the fit.
        ArtefactError: ``out`` exists or cannot be written.
    """
    data = redacted(data, Redactor(settings.redact))
    check(data)
    with one_thread():
        facts, tensors = _Fitter(data, settings, encoders, progress).run()
    prompts = [{"text": row.text, "completion": row.completion} for row in data.train]
    return save_artefact(out, facts, tensors, prompts)


class _Fitter:
    def __init__(
        self, data: Data, settings: FitSettings, encoders: Encoders, progress: Progress
    ) -> None:
        self._data = data
        self._settings = settings
        self._encoders = encoders
        self._say = progress
        self._agree = row_comparator(settings.comparator, encoders)
        self._slots = compiled_slots(settings.slots)
        self._templates = sorted({self._fingerprint(row) for row in data.train})
        self._labels = closed_labels(data.train)
        self._answers = set(self._labels or ())
        self._max_chars = max(
            MIN_MAX_CHARS, round(LONGER * max(len(row.text) for row in data.train))
        )
        # The rows that the certificate is taken on.
        self._calibration: Sequence[Row] = (
            thinned(data.calibrate, settings.seed) if settings.weights == "thin" else data.calibrate
        )

    def run(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        texts = [row.text for row in self._data.train]
        self._say(f"embedding {len(texts)} training prompts")
        sentence = self._encoders.sentence.encode(texts)
        classes = f" over {len(self._answers)} answers" if self._labels else ""
        self._say(f"fitting distance{classes}")
        second = self._tier(self._encoders.sentence, sentence)
        prompts = {"prompts": sentence_part(sentence).astype(np.float16)}
        if not answered(self._data):
            return self._distance_only(second), prompts | second.tensors("second")
        first = self._tier(self._encoders.static, self._encoders.static.encode(texts))
        self._say("combining distance and the student's confidence")
        rule = self._rule(first, second)
        self._say(f"certifying on {len(self._calibration)} rows")
        certified = self._certified(rule, self._calibration)
        tensors = prompts | rule.second.tensors("second")
        if rule.bands is not None:
            tensors |= rule.first.tensors("first")
        return self._manifest(certified, rule), tensors

    def _tier(self, encoder: Encoder, vectors: Vectors) -> Tier:
        """Distance and outlier model of one encoder, on train rows."""
        distance = Distance.fitted(vectors, self._labels, self._settings.seed)
        outlier = fit_outlier(vectors, self._labels, self._settings.seed)
        return Tier(encoder, distance, outlier, None)

    def _distance_only(self, second: Tier) -> dict[str, Any]:
        reason = "no student answers in the rows: nothing shows where the student agrees"
        s = self._settings
        none = Certificate("none", s.alpha, s.delta, s.comparator, reason=reason)
        rule = Rule(second, second, LengthScale(0.0, 1.0), None, None, np.zeros(0))
        return self._manifest(Certified(none, None, None), rule)

    def _rule(self, first: Tier, second: Tier) -> Rule:
        """Everything but the threshold, on combine rows."""
        rows = self._data.combine
        length = LengthScale.fitted([self._prefix(row) for row in rows])
        disagrees, blocked = self._disagrees(rows), self._blocked(rows)
        texts = [row.text for row in rows]
        looks = [tier.look_all(texts) for tier in (first, second)]
        tiers = [
            self._combined(tier, seen, rows, disagrees, length)
            for tier, seen in zip((first, second), looks, strict=True)
        ]
        splits = [
            self._scored(tier, seen, rows, length, blocked)
            for tier, seen in zip(tiers, looks, strict=True)
        ]
        taus = self._expected(splits[1].scores, disagrees)
        # Without a threshold to expect, every row where the student agreed could be served.
        served = ~disagrees if taus is None else splits[1].scores < taus[1]
        cut = _ood_cut(splits[1].out, served)
        trial = _trial(splits[0], splits[1], cut)
        bands = fit_bands(trial, *taus) if self._settings.cascade and taus is not None else None
        final = trial.alone if bands is None else cascade_score(trial, bands)
        grid = threshold_grid(final, self._budget(), self._equivalent_rows())
        if bands is None:
            self._say(f"no static tier: {len(rows)} combine rows do not show that it is safe")
        else:
            self._say(
                f"the static tier decides {1 - share_asked(trial, bands):.0%} of combine rows"
            )
        return Rule(tiers[0], tiers[1], length, cut, bands, grid)

    def _combined(
        self,
        tier: Tier,
        looks: Sequence[Look],
        rows: Sequence[Row],
        disagrees: Bools,
        length: LengthScale,
    ) -> Tier:
        """The tier with its combination; without where the student never, or always, agrees."""
        if disagrees.all() or not disagrees.any():
            return tier
        features = np.array(
            [tier.all_features(look, self._prefix(row), length)
             for look, row in zip(looks, rows, strict=True)]
        )  # fmt: skip
        weight = np.array([row.weight for row in rows])
        model = Logistic().fit(features, disagrees, weight, FEATURE_SIGNS)
        return Tier(tier.encoder, tier.distance, tier.outlier, model)

    def _expected(self, scores: Floats, disagrees: Bools) -> tuple[float, float] | None:
        """Between which thresholds the certified one is expected: the loosest that would pass if
        the calibrate rows were like these, and the one of nine tenths of its coverage. Wider asks
        the second tier more often (0.8 to 1.1: 55 % of the demo's rows instead of 31 %)."""
        finite = np.sort(scores[np.isfinite(scores)])
        more = len(self._calibration) / len(scores)
        budget, best = self._budget(), 0
        for tau in threshold_grid(scores, budget, len(self._calibration)):
            n = int((scores < tau).sum())
            k = int((disagrees & (scores < tau)).sum())
            if risk_p_value(round(n * more), round(k * more), budget.alpha) <= budget.delta:
                best = n
        if not best:
            return None
        strict, loose = (finite[min(int(s * best), len(finite) - 1)] for s in (0.9, 1.0))
        return float(strict), float(loose)

    def _certified(self, rule: Rule, rows: Sequence[Row]) -> Certified:
        """The threshold on calibrate rows, and their P(out) to compare later traffic with."""
        blocked = self._blocked(rows)
        texts = [row.text for row in rows]

        def seen(tier: Tier) -> _Split:
            return self._scored(tier, tier.look_all(texts), rows, rule.length, blocked)

        second = seen(rule.second)
        out = second.out
        alone = scores = np.where(_stopped(out, rule.cut), np.inf, second.scores)
        asked = None
        if rule.bands is not None:
            first = seen(rule.first)
            trial = _trial(first, second, rule.cut)
            scores = cascade_score(trial, rule.bands)
            asked = share_asked(trial, rule.bands)
            out = np.where(rule.bands.asks(first.out), second.out, first.out)
        weights = np.array([row.weight for row in rows])
        equal = bool((weights == weights[0]).all()) if len(weights) else True
        calibration = Calibration(
            scores,
            self._disagrees(rows),
            [self._slice(row) for row in rows],
            [row.text for row in rows],
            None if equal else weights,
            float(weights.max(initial=1.0)),
        )
        certificate = certify(calibration, rule.grid, self._budget())
        tau = certificate.tau or 0.0
        shown = [row for row, score in zip(rows, scores, strict=True) if score < tau]
        rate = false_agree(shown, self._agree)
        if rate is not None:
            certificate = replace(certificate, false_agree_rate=rate.upper)
        flips = float(((scores < tau) != (alone < tau)).mean())
        cascade = None if asked is None else {"asked": asked, "flips": flips}
        return Certified(certificate, Reference.fitted(out), cascade)

    def _scored(
        self,
        tier: Tier,
        looks: Sequence[Look],
        rows: Sequence[Row],
        length: LengthScale,
        blocked: Bools,
    ) -> _Split:
        """P(disagree) of rows; infinite where ``blocked``: no answer that could be served."""
        scores = [
            np.inf if stop else tier.p_disagree(look, self._prefix(row), length)
            for row, look, stop in zip(rows, looks, blocked, strict=True)
        ]
        return _Split(looks, np.array(scores))

    def _blocked(self, rows: Sequence[Row]) -> Bools:
        """Rows that are never served, whatever their score."""
        known = set(self._templates)
        return np.array(
            [
                self._fingerprint(row) not in known
                or not usable(row.student)
                or len(row.text) > self._max_chars
                for row in rows
            ]
        )

    def _disagrees(self, rows: Sequence[Row]) -> Bools:
        return np.array([not self._agree(row) for row in rows])

    def _prefix(self, row: Row) -> Prefix:
        assert row.student is not None
        return Prefix.of(row.student, self._settings.gate_tokens)

    def _fingerprint(self, row: Row) -> str:
        return fingerprint(row.messages, slots=self._slots)

    def _budget(self) -> Budget:
        s = self._settings
        return Budget.promised(s.alpha, s.delta, s.comparator, s.promotion)

    def _equivalent_rows(self) -> int:
        """Calibrate rows as the grid's start counts them: a betting test sees a row of weight w as
        a w / largest part of one."""
        weights = np.array([row.weight for row in self._calibration])
        if self._settings.weights == "thin" or (weights == weights.max()).all():
            return len(weights)
        return int(weights.sum() / weights.max())

    def _slice(self, row: Row) -> str:
        if row.slice is not None:
            return row.slice
        inside = not self._answers or row.completion in self._answers
        return "in_domain" if inside else "out_of_domain"

    def _manifest(self, certified: Certified, rule: Rule) -> dict[str, Any]:
        facts = Facts(
            self._settings,
            self._encoders,
            self._templates,
            self._max_chars,
            self._data,
            self._slice,
        )
        return manifest(facts, rule, certified)


def _trial(first: _Split, second: _Split, cut: float | None) -> Trial:
    return Trial(first.out, first.scores, _stopped(second.out, cut), second.scores)


def _stopped(out: Floats, cut: float | None) -> Bools:
    return np.zeros(len(out), dtype=bool) if cut is None else out >= cut


def _ood_cut(out: Floats, served: Bools) -> float | None:
    """The lowest P(out) above which at most ``OOD_LOSS`` of all rows would be served."""
    kept = np.sort(out[served])
    if not len(kept):
        return None
    allowed = int(OOD_LOSS * len(out))
    return float(np.nextafter(kept[-1 - min(allowed, len(kept) - 1)], np.inf))
