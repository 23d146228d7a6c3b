"""The stages of a run that make a candidate: collect, split, curate, train, load.

Each is idempotent: done again, it gives the same, since what decides it is fixed by the stages
before. It returns small facts for the ledger and leaves the rest in files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from distill.answers import StudentEndpoint
from distill.asking import AnswerCache, answered
from distill.classifier import labels_of
from distill.collecting import collect, relabelled, teacher_changed_at
from distill.curating import curate
from distill.digest import file_sha256
from distill.examples import Example, rows_json, write_examples
from distill.executor import ExecutorError, LocalExecutor
from distill.judging import judged
from distill.night import Ended, Night
from distill.relabelling import relabel
from distill.replicas import ReplicaError, load_everywhere
from distill.splitting import MEASURES, Split, Splitting, split
from distill.training import TrainingFailed, train, train_elsewhere, version_sha256
from gateway.store.probes import all_runs
from gateway.store.samples import Sample
from gateway.store.students import Kind, Plan, Version
from router.rows import Row, write_rows

Facts = dict[str, Any]


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


def placed(night: Night) -> Splitting:
    """What the split stage gave."""
    samples = {id_: Sample(id_, *values) for id_, values in night.read_json("split.json").items()}
    return Splitting(samples, [], {})


class Asking:
    """A version that rows are asked of; each prompt is asked about once per weights. It is loaded
    for the first prompt that is not known."""

    def __init__(self, night: Night, version: Version) -> None:
        self._night = night
        self._version = version
        self._cache = AnswerCache(night.job.folder / "answers" / f"{version.sha256}.jsonl")
        self._endpoints: list[StudentEndpoint] | None = None

    def about(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with the version's answers.

        Raises:
            MoneySpent: the judge comparator's questions cost more than is left of today's money.
            ReplicaError: no replica has the version.
            FitError: replicas fail while they are asked.
        """
        night, cache = self._night, self._cache
        known = [replace(row, student=cache.get(row)) for row in rows]
        if all(row.student is not None for row in known):
            return judged(night, known)
        found = answered(rows, self._loaded(), cache, night.beat, night.executor)
        return judged(night, found)

    def _loaded(self) -> list[StudentEndpoint]:
        if self._endpoints is None:
            job, version = self._night.job, self._version
            loaded = load_everywhere(job.urls(version.kind), version.name, version.folder)
            self._endpoints = job.endpoints(version, loaded.ready)
        return self._endpoints


def asked(night: Night, version: Version, rows: Sequence[Row]) -> list[Row]:
    """The rows with a version's answers; see ``Asking.about``."""
    return Asking(night, version).about(rows)


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
