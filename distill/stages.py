"""The stages of a run before its decision: collect, split, curate, train, load, evaluate.

Each is idempotent: done again, it gives the same, since what decides it is fixed by the stages
before. It returns small facts for the ledger and leaves the rest in files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from distill.answers import StudentEndpoint
from distill.asking import AnswerCache, answered
from distill.calibrating import Material, fit_judge, scores
from distill.classifier import labels_of
from distill.collecting import collect, relabelled, teacher_changed_at
from distill.curating import curate
from distill.digest import file_sha256
from distill.examples import Example, rows_json, write_examples
from distill.executor import ExecutorError, LocalExecutor
from distill.judging import judged
from distill.measuring import Speed, measured
from distill.night import Ended, Night
from distill.relabelling import relabel
from distill.replicas import ReplicaError, base_of, load_everywhere
from distill.splitting import MEASURES, Split, Splitting, split
from distill.training import TrainingFailed, train, train_elsewhere, version_sha256
from gateway.store.probes import all_runs
from gateway.store.samples import Sample
from gateway.store.students import Kind, Plan, Version
from router.agreement import row_comparator
from router.closed import closed_slice
from router.errors import FitError
from router.judge import Judge
from router.rows import Row, write_rows

Facts = dict[str, Any]
BASE = "base"
"""Who has no version: the model that adapters are trained on."""
BASE_ROWS = 100
"""Test rows that the base model is asked about: it answers at length, and only to compare."""
TOLD_SLICES = 20
"""Slices whose agreement becomes a metric; the report has all of them."""


def collect_stage(night: Night) -> Facts:
    """Exchanges up to a watermark; labels from before the teacher changed are asked again."""
    job, task = night.job, night.job.task
    runs = all_runs(night.samples, task.name)
    changed_at = teacher_changed_at(
        [r.answers for r in runs], [r.at for r in runs], task.risk.comparator
    )
    labels, now = night.samples.labels(task.name), night.run.started_at
    since = now - task.distill.window_days * 86_400
    with closing(job.place.reader()) as store:
        found = collect(store, task.name, now, task.teacher, labels, changed_at, since)
    examples, asked = found.examples, 0
    stale = [e for e in examples if e.stale]
    if stale:
        job.say(f"the teacher has changed: asking it again about {len(stale)} prompts")
        asked = relabel(night, stale)
        examples = relabelled(examples, night.samples.labels(task.name), changed_at)
    deployment = night.deployment()
    sha256 = write_examples(night.path("examples.jsonl.gz"), examples)
    return {
        "until": night.run.started_at,
        "examples": len(examples),
        "drawn": sum(e.p is not None for e in examples),
        "stale": sum(e.stale for e in examples),
        "relabelled": asked,
        "teacher_changed_at": changed_at,
        "teacher": dict(found.teacher),
        "left_out": dict(found.left_out),
        "incumbent": deployment.live if deployment else None,
        "sha256": sha256,
        "files": {"examples.jsonl.gz": file_sha256(night.path("examples.jsonl.gz"))},
    }


def split_stage(night: Night) -> Facts:
    """Every example's place, old ones as they were."""
    examples = night.examples("examples.jsonl.gz")
    task, wanted = night.job.task.name, night.job.task.distill
    known = night.samples.of_task(task)
    found = split(examples, known, wanted.shares, wanted.seed, night.executor)
    night.samples.put(task, found.changed)
    places = {id_: [s.group, s.split, s.quarantined, s.used_by, s.failed]
              for id_, s in sorted(found.samples.items())}  # fmt: skip
    return {
        **found.counts,
        "moved": sum(s.quarantined for s in found.changed),
        "files": {"split.json": night.write_json("split.json", places)},
    }


def curate_stage(night: Night) -> Facts:
    """The training set, and the reason of every row that is not in it."""
    wanted = night.job.task.distill
    examples, places = night.examples("examples.jsonl.gz"), placed(night)
    held = frozenset(
        e.key for e in examples if e.p is not None and places.samples[e.id].split in MEASURES
    )
    groups = {id_: s.group for id_, s in places.samples.items()}
    found = curate(places.of(Split.TRAIN, examples), groups, held, wanted.max_rows, wanted.seed)
    dev = places.of(Split.DEV, examples)
    if len(found.rows) < wanted.min_rows:
        raise Ended(
            "skipped", f"{len(found.rows)} training rows; distill.min_rows is {wanted.min_rows}"
        )
    write_examples(night.path("train.jsonl.gz"), found.rows)
    write_examples(night.path("dev.jsonl.gz"), dev)
    write_rows(night.path("student.jsonl"), rows_json(found.rows))
    rejected = {id_: why.value for id_, why in sorted(found.rejected.items())}
    names = ("train.jsonl.gz", "dev.jsonl.gz", "student.jsonl")
    return {
        "rows": len(found.rows),
        "dev": len(dev),
        "rejected": found.counts,
        "answers": len({e.completion for e in found.rows}),
        "data_sha256": file_sha256(night.path("student.jsonl")),
        "files": {name: file_sha256(night.path(name)) for name in names}
        | {"rejected.json": night.write_json("rejected.json", rejected)},
    }


def train_stage(night: Night) -> Facts:
    """A candidate of each kind that the task's answers allow."""
    rows, dev = night.examples("train.jsonl.gz"), night.examples("dev.jsonl.gz")
    parent = night.outputs["collect"]["incumbent"]
    candidates, left = [], {}
    for name in night.job.task.distill.students:
        kind = Kind(name)
        if kind is Kind.CLASSIFIER and not labels_of([e.row for e in rows]):
            left[name] = "the answers are no closed set"
            continue
        plan = Plan(
            night.job.task.name, kind, parent, night.run.id, night.outputs["curate"]["data_sha256"]
        )
        version = night.registry.plan(plan, night.job.folder, night.clock())
        night.job.say(f"training {version.name} ({kind.value}) on {len(rows)} rows")
        try:
            manifest = _trained(night, version, rows, dev)
        except (TrainingFailed, ExecutorError) as error:
            left[name] = str(error)
            continue
        facts = {"metrics": manifest["metrics"], "rows": manifest["rows"]}
        night.registry.trained(version.name, version_sha256(version.folder), facts)
        candidates.append(version.name)
    if not candidates:
        raise TrainingFailed("; ".join(f"{name}: {why}" for name, why in left.items()))
    return {"candidates": candidates, "left_out": left}


def _trained(
    night: Night, version: Version, rows: Sequence[Example], dev: Sequence[Example]
) -> Facts:
    """Here, or on a worker of the cluster, which finds everything under the same paths."""
    if isinstance(night.executor, LocalExecutor) or night.job.config_file is None:
        return train(night.job, version, night.path("student.jsonl"), rows, dev, night.beat)
    night.executor.alone(
        train_elsewhere,
        {
            "name": version.name.replace("@", "-"), "storage": str(night.path("ray").resolve()),
            "config": str(night.job.config_file.resolve()), "task": night.job.task.name,
            "version": version.name, "folder": str(night.folder.resolve()),
        },
    )  # fmt: skip
    shutil.rmtree(night.path("ray"), ignore_errors=True)
    manifest: Facts = json.loads((version.folder / "manifest.json").read_bytes())
    return manifest


def load_stage(night: Night) -> Facts:
    """Every candidate in every replica that takes it; those in none are out."""
    ready: dict[str, list[str]] = {}
    failed: dict[str, Any] = {}
    for name in night.outputs["train"]["candidates"]:
        version = night.version(name)
        try:
            loaded = load_everywhere(night.job.urls(version.kind), name, version.folder)
        except ReplicaError as error:
            failed[name] = str(error)
            continue
        ready[name] = loaded.ready
        if loaded.failed:
            failed[name] = loaded.failed
    if not ready:
        raise ReplicaError("; ".join(str(why) for why in failed.values()))
    return {"ready": ready, "failed": failed}


def evaluate_stage(night: Night) -> Facts:
    """Candidates and incumbent on the same test items, and whom a fixed rule would serve."""
    examples, places = night.examples("examples.jsonl.gz"), placed(night)
    test = places.of(Split.TEST, examples)
    agree = row_comparator(night.job.task.risk.comparator, night.job.encoders())
    incumbent = night.incumbent()
    said: dict[str, list[Row]] = {}
    names = list(night.outputs["load"]["ready"])
    if incumbent is not None:
        names.append(incumbent.name)
    for name in names:
        night.job.say(f"asking {name} about {len(test)} test prompts")
        said[name] = asked(night, night.version(name), [e.row for e in test])
    base = _base_said(night, [e.row for e in test[:BASE_ROWS]])
    if base is not None:
        said[BASE] = base
    agrees = {name: [agree(row) for row in rows] for name, rows in said.items()}
    tau, before = _rule_of(incumbent, night)
    slices = closed_slice([e.completion for e in examples])
    found: dict[str, Any] = {"tau": tau, "rows": [], "candidates": {}}
    for name in night.outputs["load"]["ready"]:
        rule = _trial_judge(night, night.version(name), examples, places)
        found["candidates"][name] = {
            "agrees": agrees[name],
            "scores": scores(rule, said[name]) if rule is not None else None,
        }
    found["base"] = agrees.get(BASE)
    found["tokens"] = {name: _tokens(rows) for name, rows in said.items()}
    old = said[incumbent.name] if incumbent is not None else []
    found["incumbent"] = {
        "name": incumbent.name if incumbent else None,
        "agrees": agrees[incumbent.name] if incumbent is not None else [],
        "scores": scores(before, old) if before is not None else None,
    }
    speeds = {n: _speed(night, night.version(n), said[n]) for n in night.outputs["load"]["ready"]}
    for number, example in enumerate(test):
        row = {
            "id": example.id,
            "slice": slices(example.completion),
            "regression": places.samples[example.id].failed is not None,
            "teacher": example.completion,
            "answers": {n: _text(rows[number]) for n, rows in said.items() if n != BASE},
        }
        found["rows"].append(row)
    parts = [row["slice"] for row in found["rows"]]
    return {
        "test_rows": len(test),
        "agreement": {n: _share(shares) for n, shares in agrees.items()},
        "slices": {n: by_slice(parts, s) for n, s in agrees.items() if n != BASE},
        "tau": tau,
        "speed": speeds,
        "files": {"evaluation.json": night.write_json("evaluation.json", found)},
    }


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
    """Agreement within each of the largest slices."""
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


def placed(night: Night) -> Splitting:
    """What the split stage gave."""
    samples = {id_: Sample(id_, *values) for id_, values in night.read_json("split.json").items()}
    return Splitting(samples, [], {})


def asked(night: Night, version: Version, rows: Sequence[Row]) -> list[Row]:
    """The rows with a version's answers; each prompt is asked about once per weights.

    Raises:
        MoneySpent: the judge comparator's questions cost more than is left of today's money.
        ReplicaError: no replica has the version.
        FitError: replicas fail while they are asked.
    """
    cache = AnswerCache(night.job.folder / "answers" / f"{version.sha256}.jsonl")
    bare = [replace(row, student=None) for row in rows]
    if all(cache.get(row) is not None for row in bare):
        return judged(night, [replace(row, student=cache.get(row)) for row in bare])
    loaded = load_everywhere(night.job.urls(version.kind), version.name, version.folder)
    endpoints = night.job.endpoints(version, loaded.ready)
    return judged(night, answered(bare, endpoints, cache, night.beat, night.executor))


def combine_rows(night: Night, examples: Sequence[Example], places: Splitting) -> list[Example]:
    """Draws that fit the judge: the combine split, and calibration rows that have decided once."""
    used = [e for e in places.of(Split.CALIBRATE, examples) if places.samples[e.id].used_by]
    rows = [*places.of(Split.COMBINE, examples), *used]
    return sorted(rows, key=lambda e: (e.created_at, e.id))[
        -night.job.task.distill.max_combine_rows :
    ]


def trained_rows(night: Night, version: Version) -> list[Row]:
    """What the candidate knows: a classifier nothing of answers that it was not taught."""
    rows = [e.row for e in night.examples("train.jsonl.gz")]
    if version.kind is not Kind.CLASSIFIER:
        return rows
    known = set(labels_of(rows))
    return [row for row in rows if row.completion in known]


def _rule_of(incumbent: Version | None, night: Night) -> tuple[float, Judge | None]:
    """The incumbent's certified threshold, which stays fixed for both; alpha before the first."""
    if incumbent is None or incumbent.router is None:
        return night.job.task.risk.alpha, None
    judge = Judge.load(incumbent.router, night.job.encoders())
    return judge.threshold or 0.0, judge


def _trial_judge(
    night: Night, version: Version, examples: Sequence[Example], places: Splitting
) -> Judge | None:
    """The candidate's judge without a certificate: what the fixed threshold is applied to."""
    rows = combine_rows(night, examples, places)
    if len(rows) < night.job.task.distill.min_test_rows:
        return None
    answers = asked(night, version, [e.row for e in rows])
    material = Material(trained_rows(night, version), answers, answers)
    out = night.path(f"trial-v{version.number}")
    artefact = fit_judge(night.job, version, material, out, None, night.job.say)
    return Judge(artefact, night.job.encoders())


def _text(row: Row) -> str:
    return row.student.text if row.student is not None else ""


def _share(agrees: Sequence[bool]) -> float | None:
    return round(sum(agrees) / len(agrees), 5) if agrees else None
