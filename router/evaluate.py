"""How well an artefact separates in-distribution prompts from the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.agreement import row_comparator
from router.errors import FitError
from router.judge import Judge
from router.rows import Row

TIMED_ROWS = 400


@dataclass(frozen=True, slots=True)
class Scored:
    """One evaluated row."""

    row: Row
    out: bool
    ood_score: float
    score: float
    disagrees: bool | None
    tier: int


def evaluate(judge: Judge, rows: Sequence[Row]) -> tuple[list[Scored], dict[str, Any]]:
    """Score rows and summarise.

    A row is *out* when its label is none of the training labels. ``auroc``, ``aupr_out`` and
    ``fpr95`` (share of out rows accepted where 95 % of in rows are) are in percent.

    Raises:
        FitError: rows lack labels, or all are on one side.
    """
    scored = _score(judge, rows)
    metrics = ood_metrics(
        np.array([s.ood_score for s in scored]), np.array([s.out for s in scored])
    )
    timing = _decision_us(judge, rows)
    return scored, {
        "n": len(scored),
        "n_out": sum(s.out for s in scored),
        **metrics,
        **_agreement(judge, scored),
        "sentence_share": round(sum(s.tier == 2 for s in scored) / len(scored), 4),
        "decision_us_p50": round(float(np.percentile(timing, 50)), 1),
        "decision_us_p99": round(float(np.percentile(timing, 99)), 1),
    }


def ood_metrics(scores: npt.NDArray[np.float64], out: npt.NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, AUPR (out as positive) and FPR95 in percent from scores, higher = more out."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if out.all() or not out.any():
        raise FitError("evaluation needs rows both in and out of distribution")
    accepted = np.quantile(scores[~out], 0.95, method="higher")
    return {
        "auroc": round(100 * float(roc_auc_score(out, scores)), 2),
        "aupr_out": round(100 * float(average_precision_score(out, scores)), 2),
        "fpr95": round(100 * float((scores[out] <= accepted).mean()), 2),
    }


def _score(judge: Judge, rows: Sequence[Row]) -> list[Scored]:
    known = {str(p["completion"]) for p in judge.artefact.prompts}
    agree = row_comparator(judge.certificate.comparator, judge.encoders)
    scored = []
    for row in rows:
        if row.completion is None:
            raise FitError("evaluation rows need a 'label' or 'completion'")
        decision = judge.decide(row.messages, row.student)
        answer = row.student
        disagrees = None if answer is None else not agree(row)
        out = row.completion not in known if row.out is None else row.out
        # P(out) of the best tier: what is compared with other methods.
        pre = judge.refine(decision.pre)
        score = pre.ood_score if answer is None else decision.score
        scored.append(Scored(row, out, pre.ood_score, score, disagrees, decision.tier))
    return scored


def _agreement(judge: Judge, scored: Sequence[Scored]) -> dict[str, Any]:
    answered = [s for s in scored if s.disagrees is not None]
    if not answered or judge.threshold is None:
        return {}
    served = [s for s in answered if s.score < judge.threshold]
    agreed = sum(not s.disagrees for s in served)
    return {
        "coverage": round(len(served) / len(answered), 4),
        "agreement": round(agreed / len(served), 4) if served else None,
    }


def _decision_us(judge: Judge, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Wall microseconds of single decisions, after a warm-up, spread over the rows."""
    step = max(1, len(rows) // TIMED_ROWS)
    sample = rows[::step][:TIMED_ROWS]
    for row in sample[:20]:
        judge.decide(row.messages, row.student)
    took = []
    for row in sample:
        started = time.perf_counter_ns()
        judge.decide(row.messages, row.student)
        took.append((time.perf_counter_ns() - started) / 1000)
    return np.array(took)
