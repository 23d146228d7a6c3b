"""Who may answer: coverage at stated agreement, a mixed day's cost, attacks, ablations, latency.

With the real student's real log-probabilities on held-out traffic (``tests/data/heldout``).
Everything is fitted on train and combine rows, certified on calibrate rows; ablations look at
calibrate rows; held-out rows are only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import roc_auc_score

from router.comparator import comparator
from router.confidence import NAMES, LengthScale, Prefix
from router.data import Data
from router.distance import DISTANCE_NAMES
from router.encoder import Encoders
from router.fit import fit_artefact
from router.judge import Judge
from router.logistic import Logistic
from router.manifest import FitSettings
from router.memory import REMEMBERED
from router.minilm import sentence_part
from router.rows import Row, read_rows, usable
from router.threads import stay_on_one_thread
from router.tier import FEATURE_SIGNS, FEATURES, Tier
from tests.fakes.rig import ROOT

ROWS = ROOT / "tests/data/banking-intents"
HELDOUT = ROOT / "tests/data/heldout/answers.jsonl.gz"
GATE_TOKENS = 32
TEACHER_USD = (2.5e-6, 10e-6)
"""Per prompt and completion token, as in the demo's configuration."""
STUDENT_USD = 0.10 / 3600 / 10
"""A machine of 0.10 USD per hour at the ten answers per second that it gives here."""
DAY: Mapping[str, float] = {"in_domain": 0.5, "near": 0.3, "far": 0.1, "open": 0.1}

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Held-out rows, whether the student's answer agrees, and each method's score."""

    rows: Sequence[Row]
    agrees: Bools
    slices: npt.NDArray[np.str_]

    def of(self, *names: str) -> Bools:
        """Rows of the named slices."""
        return np.isin(self.slices, names)


def heldout() -> Traffic:
    """The shipped rows; a row without a usable answer disagrees."""
    rows = read_rows(HELDOUT)
    agree = comparator("label")
    agrees = [
        usable(r.student) and r.student is not None and agree(r.student.text, r.completion or "")
        for r in rows
    ]
    return Traffic(rows, np.array(agrees), np.array([r.slice or "" for r in rows]))


def fitted(encoders: Encoders, folder: Path, alpha: float) -> Judge:
    """The judge of the demo's task under another budget."""
    data = Data(*(read_rows(ROWS / f"{n}.jsonl.gz") for n in ("train", "combine", "calibrate")))
    settings = FitSettings("banking-intents", "v1", alpha=alpha)
    out = folder / f"alpha-{alpha:g}"
    if not out.exists():
        fit_artefact(data, settings, encoders, out, lambda _: None)
    return Judge.load(out, encoders)


def scores(judge: Judge, traffic: Traffic, encoders: Encoders) -> dict[str, Floats]:
    """Every method's score of every held-out row, lower is safer."""
    combine = read_rows(ROWS / "combine.jsonl.gz")
    train = read_rows(ROWS / "train.jsonl.gz")
    rows = traffic.rows
    decisions = [judge.decide(r.messages, r.student) for r in rows]
    vectors = sentence_part(encoders.sentence.encode([r.text for r in rows]))
    trained = sentence_part(encoders.sentence.encode([r.text for r in train]))
    labels = np.array([r.completion for r in train])
    means = np.stack([trained[labels == c].mean(axis=0) for c in np.unique(labels)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    head = LogisticRegression(C=20, max_iter=300).fit(trained, labels)
    similarity = vectors @ trained.T
    return {
        "ours": np.array([d.score for d in decisions]),
        "confidence alone": np.array([-_least(r) for r in rows]),
        "kNN alone": -np.partition(similarity, -10, axis=1)[:, -10:].mean(axis=1),
        "max-softmax alone": -head.predict_proba(vectors).max(axis=1),
        "embedding alone": -(vectors @ means.T).max(axis=1),
        "RouteLLM-style": _prompt_classifier(combine, encoders).predict_proba(vectors)[:, 1],
        "random": np.random.default_rng(0).random(len(rows)),
    }


def _least(row: Row) -> float:
    """The student's smallest token log-probability over the gated prefix."""
    tokens = row.student.tokens[:GATE_TOKENS] if row.student else ()
    return min((max(t.logprob, -50.0) for t in tokens), default=-50.0)


def _prompt_classifier(rows: Sequence[Row], encoders: Encoders) -> LogisticRegressionCV:
    """P(student loses) from the prompt's embedding alone, on the same labels as ours: what
    RouteLLM's classifiers do (Ong et al., arXiv 2406.18665), with this encoder in place of BERT."""
    agree = comparator("label")
    lost = [not agree(r.student.text if r.student else "", r.completion or "") for r in rows]
    vectors = sentence_part(encoders.sentence.encode([r.text for r in rows]))
    # Its penalty is chosen by cross-validation on the same rows.
    model = LogisticRegressionCV(Cs=8, cv=5, max_iter=500, scoring="neg_log_loss")
    return model.fit(vectors, lost)


def coverage_at(score: Floats, agrees: Bools, agreement: float) -> float:
    """Largest share of rows that a threshold serves at that agreement: an oracle's threshold, the
    same for every method."""
    order = np.argsort(score, kind="stable")
    served = np.arange(1, len(order) + 1)
    right = np.cumsum(agrees[order])
    # A threshold cannot tell ties apart.
    ends = np.append(np.diff(score[order]) > 0, True) & np.isfinite(score[order])
    good = ends & (right / served >= agreement)
    return float(served[good].max(initial=0) / len(order))


def coverage_table(found: Mapping[str, Floats], traffic: Traffic) -> list[dict[str, Any]]:
    """Coverage of the demo's mixed traffic at 95 and 98 % agreement, and separation."""
    mixed = traffic.of("in_domain", "near", "oos")
    rows = []
    for name, score in found.items():
        finite = np.where(np.isfinite(score), score, 1e9)[mixed]
        rows.append(
            {
                "method": name,
                "disagree_auroc": round(
                    100 * float(roc_auc_score(~traffic.agrees[mixed], finite)), 2
                ),
                "coverage_at_95": round(coverage_at(score[mixed], traffic.agrees[mixed], 0.95), 4),
                "coverage_at_98": round(coverage_at(score[mixed], traffic.agrees[mixed], 0.98), 4),
            }
        )
    return rows


def certified(judge: Judge, traffic: Traffic, score: Floats) -> dict[str, Any]:
    """What the certified threshold does on held-out rows, slice by slice."""
    assert judge.threshold is not None
    served = score < judge.threshold
    mixed = traffic.of("in_domain", "near", "oos")
    slices = {
        name: {
            "rows": int((traffic.slices == name).sum()),
            "served": round(float(served[traffic.slices == name].mean()), 4),
        }
        for name in sorted(set(traffic.slices))
        if not name.startswith("attack:")
    }
    return {
        "alpha": judge.certificate.alpha,
        "threshold": round(judge.threshold, 5),
        "calibration": {"n": judge.certificate.n, "k": judge.certificate.k},
        "coverage": round(float(served[mixed].mean()), 4),
        "agreement": round(float(traffic.agrees[mixed & served].mean()), 4),
        "served": int((mixed & served).sum()),
        "slices": slices,
        "cascade": judge.artefact.manifest["cascade"],
    }


def attack_table(judge: Judge, traffic: Traffic, score: Floats) -> list[dict[str, Any]]:
    """How many attacks of each family get to the student's answer."""
    assert judge.threshold is not None
    return [
        {
            "family": name.removeprefix("attack:"),
            "prompts": int((traffic.slices == name).sum()),
            "student_served": int((score[traffic.slices == name] < judge.threshold).sum()),
        }
        for name in sorted(set(traffic.slices))
        if name.startswith("attack:")
    ]


def mixed_day(
    judge: Judge, traffic: Traffic, found: Mapping[str, Floats], seed: int = 0
) -> list[dict[str, Any]]:
    """A day of in-domain, near, far and open-ended requests: cost and agreement of our certified
    rule, and of others given the same money."""
    rng = np.random.default_rng(seed)
    far = traffic.of("oos", "banking77")
    pools = {
        "in_domain": traffic.of("in_domain"), "near": traffic.of("near"), "far": far,
        "open": traffic.of("open"),
    }  # fmt: skip
    day = np.concatenate(
        [rng.choice(np.flatnonzero(pool), int(4000 * DAY[n])) for n, pool in pools.items()]
    )
    teacher = np.array([_teacher_usd(traffic.rows[i]) for i in day])
    assert judge.threshold is not None
    served = found["ours"][day] < judge.threshold
    asked = np.isfinite(found["ours"][day])
    cost = float(np.where(served, 0.0, teacher).sum() + STUDENT_USD * asked.sum())
    rows = [_day_row("ours, certified", served, cost, teacher, traffic, day)]
    for name in ("RouteLLM-style", "confidence alone", "random"):
        order = np.argsort(found[name][day], kind="stable")
        # Those who look at the prompt only pay for the answers that they serve.
        each = STUDENT_USD if name == "confidence alone" else 0.0
        spend = teacher.sum() + each * len(day) - np.cumsum(teacher[order])
        if name != "confidence alone":
            spend = spend + STUDENT_USD * np.arange(1, len(day) + 1)
        count = int(np.argmax(spend <= cost)) + 1
        chosen = np.zeros(len(day), bool)
        chosen[order[:count]] = True
        rows.append(_day_row(name, chosen, float(spend[count - 1]), teacher, traffic, day))
    return rows


def _day_row(
    name: str, served: Bools, cost: float, teacher: Floats, traffic: Traffic,
    day: npt.NDArray[np.intp],
) -> dict[str, Any]:  # fmt: skip
    agrees = np.where(served, traffic.agrees[day], True)
    opened = traffic.slices[day] == "open"
    return {
        "router": name,
        "cost_of_teacher_only": round(cost / float(teacher.sum()), 4),
        "student_share": round(float(served.mean()), 4),
        "agreement_of_student_answers": round(float(traffic.agrees[day][served].mean()), 4),
        "agreement_of_all_answers": round(float(agrees.mean()), 4),
        "open_ended_student_served": round(float(served[opened].mean()), 4),
    }


def _teacher_usd(row: Row) -> float:
    """Tokens by four characters each; an open-ended answer is taken to be 200 tokens long."""
    prompt = sum(len(m.content) for m in row.messages) / 4
    answer = 200 if row.slice == "open" else len(row.completion or "") / 4
    return prompt * TEACHER_USD[0] + answer * TEACHER_USD[1]


def ablations(judge: Judge) -> list[dict[str, Any]]:
    """The combination without each feature, on calibrate rows; both tiers' full rows first."""
    combine, calibrate = (read_rows(ROWS / f"{n}.jsonl.gz") for n in ("combine", "calibrate"))
    length = LengthScale.fitted([_prefix(row) for row in combine])
    assert judge.first is not None
    groups: list[tuple[str, Sequence[str]]] = [("nothing", ())]
    groups += [(name, (name,)) for name in FEATURES]
    groups += [("every distance", DISTANCE_NAMES), ("every confidence", NAMES)]
    found = []
    for tier_name, tier in (("sentence", judge.second), ("static", judge.first)):
        fit, see = (_matrix(tier, rows, length) for rows in (combine, calibrate))
        lost, truth = _lost(combine), _lost(calibrate)
        for name, removed in groups if tier_name == "sentence" else groups[:1]:
            kept = [i for i, feature in enumerate(FEATURES) if feature not in removed]
            signs = [FEATURE_SIGNS[i] for i in kept]
            model = Logistic().fit(fit[:, kept], lost, np.ones(len(lost)), signs)
            score = model.decision_function(see[:, kept])
            found.append(
                {
                    "tier": tier_name,
                    "without": name,
                    "disagree_auroc": round(100 * float(roc_auc_score(truth, score)), 2),
                    "coverage_at_95": round(coverage_at(score, ~truth, 0.95), 4),
                    "coverage_at_98": round(coverage_at(score, ~truth, 0.98), 4),
                }
            )
    return found


def _prefix(row: Row) -> Prefix:
    assert row.student is not None
    return Prefix.of(row.student, GATE_TOKENS)


def _lost(rows: Sequence[Row]) -> Bools:
    agree = comparator("label")
    return np.array(
        [not agree(r.student.text if r.student else "", r.completion or "") for r in rows]
    )


def _matrix(tier: Tier, rows: Sequence[Row], length: LengthScale) -> Floats:
    looks = tier.look_all([row.text for row in rows])
    return np.array(
        [tier.all_features(k, _prefix(row), length) for k, row in zip(looks, rows, strict=True)]
    )


def latency(judge: Judge, traffic: Traffic) -> dict[str, Any]:
    """CPU microseconds of whole decisions on mixed short traffic, and of the sentence tier by
    length."""
    mixed = [
        r
        for r, keep in zip(traffic.rows, traffic.of("in_domain", "near", "oos"), strict=True)
        if keep
    ]
    stay_on_one_thread()  # as the server does
    judge.remember(0)  # every prompt was judged before, for the tables above
    for row in mixed[:50]:
        judge.decide(row.messages, row.student)
    decide = _timed([partial(_decide, judge, row) for row in mixed])
    sizes = {}
    for tokens in (16, 64):
        text = " ".join(["apr"] * (tokens - 2))  # and the two tokens at the ends
        sizes[str(tokens)] = _quantiles(_timed([partial(judge.second.look, text)] * 400))
    judge.remember(REMEMBERED)
    return {
        "mixed": {**_quantiles(decide), "mean": round(float(decide.mean()), 1), "n": len(decide)},
        "sentence_tier_by_tokens": sizes,
    }


def _decide(judge: Judge, row: Row) -> None:
    judge.decide(row.messages, row.student)


def _timed(calls: Sequence[Callable[[], Any]]) -> Floats:
    took = []
    for call in calls:
        started = time.thread_time_ns()
        call()
        took.append((time.thread_time_ns() - started) / 1000)
    return np.array(took)


def _quantiles(values: Floats) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 95, 99)}
