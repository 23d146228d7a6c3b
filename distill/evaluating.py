"""The stage that measures: candidates and incumbent on the same test rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.answers import StudentEndpoint
from distill.asking import AT_ONCE, AnswerCache, answered
from distill.calibrating import Material, fit_judge, scores
from distill.deciding import hopeless
from distill.examples import Example
from distill.judging import judged
from distill.measuring import Speed, measured
from distill.night import Night
from distill.replicas import ReplicaError, base_of
from distill.splitting import Split, Splitting
from distill.stages import Asking, Facts, asked, combine_rows, placed, trained_rows
from gateway.store.students import Kind, Version
from router.agreement import RowComparator, row_comparator
from router.closed import closed_slice
from router.errors import FitError
from router.judge import Judge
from router.rows import Row

BASE = "base"
"""Who has no version: the model that adapters are trained on."""
BASE_ROWS = 100
"""Test rows that the base model is asked about: it answers at length, and only to compare."""
TOLD_SLICES = 20
"""Slices whose agreement becomes a metric; the report has all of them."""


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody said to test rows, and which of it agrees with the teacher. A candidate that
    was ``refused`` was asked about the first of them alone."""

    rows: list[Row]
    agrees: list[bool]
    refused: str | None = None


def evaluate_stage(night: Night) -> Facts:
    """Candidates and incumbent on the same test items, and whom a fixed rule would serve."""
    examples, places = night.examples("examples.jsonl.gz"), placed(night)
    test = places.of(Split.TEST, examples)
    ready = list(night.outputs["load"]["ready"])
    incumbent, said = night.incumbent(), _said(night, [e.row for e in test])
    tau, rule = _rule_of(incumbent, night)
    slices = closed_slice([e.completion for e in examples])
    base = said.pop(BASE, None)
    old = said[incumbent.name] if incumbent is not None else Said([], [])
    found: dict[str, Any] = {
        "tau": tau,
        "rows": [
            {
                "id": example.id,
                "slice": slices(example.completion),
                "regression": places.samples[example.id].failed is not None,
                "teacher": example.completion,
                "answers": {
                    name: _text(one.rows[number])
                    for name, one in said.items() if number < len(one.rows)
                },
            }
            for number, example in enumerate(test)
        ],
        "candidates": {
            name: {
                "agrees": said[name].agrees,
                "scores": _trial_scores(night, name, said[name], examples, places),
                "refused": said[name].refused,
            }
            for name in ready
        },
        "base": base.agrees if base is not None else None,
        "tokens": {name: _tokens(one.rows) for name, one in said.items()},
        "incumbent": {
            "name": incumbent.name if incumbent is not None else None,
            "agrees": old.agrees,
            "scores": scores(rule, old.rows) if rule is not None else None,
        },
    }  # fmt: skip
    if base is not None:
        said[BASE] = base
        found["tokens"][BASE] = _tokens(base.rows)
    parts = [row["slice"] for row in found["rows"]]
    return {
        "test_rows": len(test),
        "asked": {name: len(said[name].rows) for name in ready},
        "agreement": {name: _share(one.agrees) for name, one in said.items()},
        "slices": {
            name: by_slice(parts, one.agrees) for name, one in said.items() if name != BASE
        },
        "tau": tau,
        "speed": {
            name: _speed(night, night.version(name), said[name].rows)
            for name in ready if said[name].refused is None
        },
        "files": {"evaluation.json": night.write_json("evaluation.json", found)},
    }  # fmt: skip


def _said(night: Night, rows: Sequence[Row]) -> dict[str, Said]:
    """Candidates in their order, the incumbent, and the base model if there is one to compare."""
    agree = row_comparator(night.job.task.risk.comparator, night.job.encoders())
    incumbent = night.incumbent()
    old = None
    if incumbent is not None:  # first: a candidate is asked for as long as it can match it
        night.job.say(f"asking {incumbent.name} about {len(rows)} test prompts")
        found = asked(night, incumbent, rows)
        old = Said(found, [agree(row) for row in found])
    said = {}
    for name in night.outputs["load"]["ready"]:
        night.job.say(f"asking {name} about {len(rows)} test prompts")
        said[name] = _candidate_said(night, name, rows, agree, old)
    if incumbent is not None and old is not None:
        said[incumbent.name] = old
    base = _base_said(night, rows[:BASE_ROWS])
    if base is not None:
        said[BASE] = Said(base, [agree(row) for row in base])
    return said


def _candidate_said(
    night: Night, name: str, rows: Sequence[Row], agree: RowComparator, old: Said | None
) -> Said:
    """Its answers to all rows, or to as many as show that the gate will refuse it."""
    asking = Asking(night, night.version(name))
    # As many at once as their replicas take; without an incumbent there is nothing to look for.
    width = AT_ONCE * len(night.outputs["load"]["ready"][name])
    found, agrees = list[Row](), list[bool]()
    for start in range(0, len(rows), width):
        part = asking.about(rows[start : start + width])
        found += part
        agrees += [agree(row) for row in part]
        if old is not None and len(found) < len(rows):
            why = hopeless(agrees, old.agrees, night.job.task.distill.gate_margin)
            if why is not None:
                night.job.say(f"{name} is asked no further: {why}")
                return Said(found, agrees, why)
    return Said(found, agrees)


def _base_said(night: Night, rows: Sequence[Row]) -> list[Row] | None:
    """The answers of the base model, where a candidate is an adapter on one: what the training was
    worth. A run does not end for want of them."""
    ready = night.outputs["load"]["ready"]
    lora = next((name for name in ready if night.version(name).kind is Kind.LORA), None)
    if lora is None:
        return None
    try:
        name = base_of(ready[lora][0])
        if name is None:
            return None
        pinned = json.loads((night.version(lora).folder / "manifest.json").read_bytes())["base"]
        digest = hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()
        cache = AnswerCache(night.job.folder / "answers" / f"base-{digest[:32]}.jsonl")
        endpoint = StudentEndpoint(ready[lora][0], name, night.job.task.distill.max_tokens)
        night.job.say(f"asking the base model {name} about {len(rows)} test prompts")
        bare = [replace(row, student=None) for row in rows]
        return judged(night, answered(bare, [endpoint], cache, night.beat, night.executor))
    except (ReplicaError, FitError, OSError, KeyError) as error:
        night.job.say(f"the base model was not measured: {error}")
        return None


def by_slice(names: Sequence[str], agrees: Sequence[bool]) -> dict[str, float]:
    """Agreement within each of the largest slices, of the rows that were asked about."""
    names = names[: len(agrees)]
    counts = Counter(names)
    right = Counter(name for name, agreed in zip(names, agrees, strict=True) if agreed)
    return {name: round(right[name] / count, 4) for name, count in counts.most_common(TOLD_SLICES)}


def _tokens(rows: Sequence[Row]) -> float | None:
    """Mean length of the answers, in tokens."""
    lengths = [len(row.student.tokens) for row in rows if row.student is not None]
    return round(sum(lengths) / len(lengths), 2) if lengths else None


def _speed(night: Night, version: Version, rows: Sequence[Row]) -> dict[str, float] | None:
    """What an answer costs and takes, at eight requests at once."""
    urls = night.outputs["load"]["ready"][version.name]
    found: Speed | None = measured(night.job.endpoints(version, urls[:1])[0], rows)
    return found.to_json(night.job.price_per_hour(version.kind)) if found is not None else None


def _rule_of(incumbent: Version | None, night: Night) -> tuple[float, Judge | None]:
    """The incumbent's certified threshold, which stays fixed for both; alpha before the first."""
    if incumbent is None or incumbent.router is None:
        return night.job.task.risk.alpha, None
    judge = Judge.load(incumbent.router, night.job.encoders())
    return judge.threshold or 0.0, judge


def _trial_scores(
    night: Night, name: str, said: Said, examples: Sequence[Example], places: Splitting
) -> list[float] | None:
    """P(disagree) of its answers by a judge without a certificate: what the fixed threshold is
    applied to. None where there are too few rows to fit one, or the candidate is out already."""
    if said.refused is not None:
        return None
    rows = combine_rows(night, examples, places)
    if len(rows) < night.job.task.distill.min_test_rows:
        return None
    version = night.version(name)
    answers = asked(night, version, [e.row for e in rows])
    material = Material(trained_rows(night, version), answers, answers)
    out = night.path(f"trial-v{version.number}")
    artefact = fit_judge(night.job, version, material, out, None, night.job.say)
    return scores(Judge(artefact, night.job.encoders()), said.rows)


def _text(row: Row) -> str:
    return row.student.text if row.student is not None else ""


def _share(agrees: Sequence[bool]) -> float | None:
    return round(sum(agrees) / len(agrees), 5) if agrees else None
