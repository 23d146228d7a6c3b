"""Students of three kinds of task, from a store of the teacher's answers to a decision.

``python -m tests.bench.students TASK``: ``intents`` (30 of CLINC150, classifier and LoRA from 2,000
pairs), ``extraction`` (restaurant bookings as JSON) or ``numbers`` (grade-school mathematics). The
loop runs as it does at night; then rows that it never saw are asked of what it promoted.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.classifiers import classifiers_ready, start_classifiers
from deploy.demo.processes import Children
from deploy.demo.task import INTENTS
from deploy.demo.vllm import VllmSettings, start_vllm, vllm_ready
from deploy.nights.plan import Crowd, chat
from distill.answers import StudentEndpoint
from distill.asking import AnswerCache, answered
from distill.replicas import load_everywhere
from gateway.store.place import Place
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Status
from gateway.store.students import Kind
from router.agreement import row_comparator
from router.encoder import load_encoders
from router.judge import Judge
from router.rows import Row
from router.template import Message
from tests.fakes.process import free_port
from tests.fakes.rig import CACHE, ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON

SHARED = ROOT.parent / "shared/data"
CLINC150 = ROOT / "tests/data/clinc150"
BEGAN = time.time() - 86_400.0
TEACHER_MS = 600.0
"""What the reference teacher is told to take; a frontier model's answer takes about as long."""
PRICE = {"input": 2.5, "output": 10.0}


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the teacher's answer."""

    messages: list[dict[str, str]]
    answer: str

    @property
    def row(self) -> Row:
        """As the judge sees it."""
        return Row(tuple(Message(m["role"], m["content"]) for m in self.messages), self.answer)


@dataclass(frozen=True, slots=True)
class Set:
    """A task's pairs: to learn from, drawn from its traffic, and held back until the end."""

    comparator: str
    learn: list[Pair]
    drawn: list[Pair]
    held: list[Pair]
    students: list[str]
    epochs: float
    max_tokens: int


def intents(pairs: int) -> Set:
    """Thirty banking intents; a tenth of the drawn traffic is out of scope."""
    crowd = Crowd(CLINC150)
    labels = sorted(INTENTS)
    rng = random.Random(5)
    inside = [Pair(chat(u), u.label) for u in crowd.day(10_000, labels) if u.label in INTENTS]
    outside = [Pair(chat(u), u.label) for u in crowd.day(200, [])]
    rng.shuffle(inside)
    held = inside[:500]
    drawn = [*inside[500:1500], *outside[:110]]
    rng.shuffle(drawn)
    return Set("label", inside[1500 : 1500 + pairs], drawn, held, ["classifier", "lora"], 3.0, 16)


def extraction(pairs: int) -> Set:
    """Slots of restaurant bookings as JSON."""
    system = "Extract the booking's slots as JSON."
    rows = [*_read("extraction/restaurant8k_train_sample1200.jsonl.gz"),
            *_read("extraction/restaurant8k_test_sample720.jsonl.gz")]  # fmt: skip
    found = []
    for row in rows:
        slots = {slot["slot"]: slot["text"] for slot in row["slots"]}
        user = row["text"]
        if row["requested_slots"]:
            user = f"(asked for {', '.join(row['requested_slots'])}) {user}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        found.append(Pair(messages, json.dumps(slots, sort_keys=True)))
    random.Random(5).shuffle(found)
    return Set("json", found[900 : 900 + pairs], found[200:900], found[:200],
               ["classifier", "lora"], 3.0, 64)  # fmt: skip


def numbers(pairs: int) -> Set:
    """Grade-school mathematics, the final number alone: more than a small model can."""
    found = []
    for row in _read("gsm8k/train_sample2000.jsonl.gz"):
        messages = [{"role": "system", "content": "Answer with the final number."},
                    {"role": "user", "content": row["question"]}]  # fmt: skip
        found.append(Pair(messages, row["answer"].rpartition("####")[2].strip()))
    random.Random(5).shuffle(found)
    return Set("number", found[800 : 800 + min(pairs, 600)], found[100:800], found[:100],
               ["classifier", "lora"], 1.0, 12)  # fmt: skip


def _read(name: str) -> Iterator[Any]:
    with gzip.open(SHARED / name, "rt") as handle:
        yield from map(json.loads, handle)


def fill(folder: Path, found: Set) -> Place:
    """The teacher's answers as the gateway would have stored them; draws at probability 1."""
    place = Place(folder / "understudy.db")
    rows = [*((p, False) for p in found.learn), *((p, True) for p in found.drawn)]
    random.Random(6).shuffle(rows)
    with contextlib.closing(place.repository()) as store:
        store.put(_exchange(n, pair, drawn) for n, (pair, drawn) in enumerate(rows))
    return place


def _exchange(number: int, pair: Pair, drawn: bool) -> Exchange:
    message = {"role": "assistant", "content": pair.answer}
    prompt = sum(len(m["content"]) // 4 + 4 for m in pair.messages)
    tokens = max(1, len(pair.answer) // 4)
    usd = (prompt * PRICE["input"] + tokens * PRICE["output"]) / 1e6
    return Exchange(
        id=f"{number:032x}", created_at=BEGAN + number, task="bench", principal="app",
        model="bench", stream=False, status=Status.COMPLETE, served_by="teacher",
        reason="no_student", would_be_reason="no_student",
        request={"model": "bench", "messages": pair.messages},
        answer={"choices": [{"message": message, "finish_reason": "stop"}]},
        draw_p=1.0 if drawn else None,
        draw=Draw(1.0, "student", DrawState.ALONE) if drawn else None,
        attempts=(Attempt("bench/teacher", "teacher", "ok", 200, prompt, tokens, usd, TEACHER_MS),),
    )  # fmt: skip


def config(folder: Path, found: Set, urls: dict[Kind, str], price_per_hour: float) -> Path:
    """The task's configuration."""
    data = {
        "store": "sqlite:///./understudy.db",
        "cache": str(CACHE),
        "tasks": [
            {
                "name": "bench",
                "teacher": {"base_url": "http://127.0.0.1:9/v1", "model": "t", "price": PRICE},
                "student": {
                    "base_urls": [urls[Kind.LORA]], "classifier_urls": [urls[Kind.CLASSIFIER]],
                    "price_per_hour": price_per_hour, "classifier_price_per_hour": 0.02,
                },
                "risk": {"alpha": 0.05, "delta": 0.05, "comparator": found.comparator},
                "distill": {
                    "students": found.students, "base": str(BASE), "python": str(STUDENT_PYTHON),
                    "epochs": found.epochs, "max_tokens": found.max_tokens,
                    "shares": {"test": 0.3, "calibrate": 0.4, "combine": 0.26, "dev": 0.04},
                    "promise": "every_version",
                },
            }
        ],
    }  # fmt: skip
    path = folder / "understudy.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=("intents", "extraction", "numbers"))
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--price-per-hour", type=float, default=0.10, help="vLLM's machine, USD.")
    parser.add_argument("--out", type=Path, help="Keep the report here.")
    wanted = parser.parse_args()
    found = {"intents": intents, "extraction": extraction, "numbers": numbers}[wanted.task](
        wanted.pairs
    )
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="var"))).resolve()
        children = stack.enter_context(Children(folder / "logs"))
        urls = _servers(children, "lora" in found.students)
        place, path = fill(folder, found), config(folder, found, urls, wanted.price_per_hour)
        said = _run(path)
        result = {
            "task": wanted.task, "pairs": len(found.learn), "drawn": len(found.drawn),
            "state": said["state"], "reason": said["reason"],
            **_measured(place, folder, found, urls),
            "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        if wanted.out is not None:
            wanted.out.write_bytes(Path(said["report"]).read_bytes())
    print(json.dumps(result, indent=1))


def _servers(children: Children, lora: bool) -> dict[Kind, str]:
    port = free_port()
    classifier = start_classifiers(children, port, CACHE)
    settings = VllmSettings(STUDENT_PYTHON, BASE, free_port())
    if lora:
        vllm_ready(start_vllm(children, settings), settings)
    return {Kind.CLASSIFIER: classifiers_ready(classifier, port), Kind.LORA: settings.url}


def _run(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "distill", "run", "--config", str(path), "--json"],
        cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measured(place: Place, folder: Path, found: Set, urls: dict[Kind, str]) -> dict[str, Any]:
    """What the run's stages say, and every student on rows that the loop never saw."""
    with contextlib.closing(place.ledger()) as ledger:
        (run,) = ledger.runs("bench")
        stages = {s.name: (s.outputs or {}) for s in ledger.stages(run.id)}
    with contextlib.closing(place.registry()) as registry:
        versions = registry.versions("bench")
    encoders = load_encoders(CACHE)
    agree = row_comparator(found.comparator, encoders)
    students: dict[str, Any] = {}
    for version in versions:
        if version.sha256 is None:
            students[version.kind.value] = {"trained": False}
            continue
        url = urls[version.kind]
        load_everywhere([url], version.name, version.folder)
        cache = AnswerCache(folder / f"{version.name}.jsonl")
        endpoint = StudentEndpoint(url, version.name, found.max_tokens)
        rows = answered([p.row for p in found.held], [endpoint], cache, lambda: None)
        told: dict[str, Any] = {
            "rows": version.facts.get("rows"),
            "train_seconds": version.facts["metrics"].get("train_seconds"),
            "held_out_agreement": round(sum(map(agree, rows)) / len(rows), 4),
        }
        speed = stages.get("evaluate", {}).get("speed", {}).get(version.name)
        if speed:
            told |= speed
        if version.router is not None:
            told |= _served(Judge.load(version.router, encoders), rows, agree)
        students[version.kind.value] = told
    return {
        "teacher": stages.get("collect", {}).get("teacher"),
        "left_out": stages.get("train", {}).get("left_out"),
        "chosen": stages.get("gate", {}).get("why"),
        "certificate": {
            k: v for k, v in stages.get("recalibrate", {}).get("certificate", {}).items()
            if k in ("status", "n", "k", "rows", "coverage", "reason")
        },
        "base_agreement": stages.get("evaluate", {}).get("agreement", {}).get("base"),
        "students": students,
    }  # fmt: skip


def _served(judge: Judge, rows: Sequence[Row], agree: Any) -> dict[str, Any]:
    if judge.threshold is None:
        return {"held_out_coverage": 0.0}
    scores = [judge.decide(row.messages, row.student).score for row in rows]
    served = [row for row, s in zip(rows, scores, strict=True) if s < judge.threshold]
    agreed = sum(map(agree, served))
    return {
        "held_out_coverage": round(len(served) / len(rows), 4),
        "held_out_agreement_of_served": round(agreed / len(served), 4) if served else None,
    }


if __name__ == "__main__":
    main()
