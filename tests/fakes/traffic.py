"""Captured traffic of a task that has no student yet, written into a store."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.task import Utterance
from deploy.nights.plan import Crowd, chat
from gateway.store.place import Place
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Status
from tests.fakes.rig import CACHE, ROOT

TASK = "banking-intents"
CLINC150 = ROOT / "tests/data/clinc150"
BEGAN = time.time() - 86_400.0


def exchange(
    number: int, utterance: Utterance, p: float, rng: random.Random, at: float | None = None
) -> Exchange:
    """One answered request; drawn with probability ``p``."""
    drawn = rng.random() < p
    answer = {
        "choices": [
            {"message": {"role": "assistant", "content": utterance.label}, "finish_reason": "stop"}
        ]
    }
    attempt = Attempt(f"{TASK}/teacher", "teacher", "ok", 200, 40, 5, 0.00015, 250.0)
    return Exchange(
        id=f"{number:032x}",
        created_at=BEGAN + number if at is None else at,
        task=TASK,
        principal="app",
        model=TASK,
        stream=False,
        status=Status.COMPLETE,
        served_by="teacher",
        reason="no_student",
        would_be_reason="no_student",
        request={"model": TASK, "messages": chat(utterance)},
        answer=answer,
        draw_p=p,
        draw=Draw(p, "student", DrawState.ALONE) if drawn else None,
        attempts=(attempt,),
    )


def captured(count: int, p: float = 0.5, seed: int = 3) -> list[Exchange]:
    """So many exchanges over the demo's thirty intents."""
    from deploy.demo.task import INTENTS

    crowd, rng = Crowd(CLINC150), random.Random(seed)
    rows = crowd.day(count, sorted(INTENTS))
    return [exchange(n, utterance, p, rng) for n, utterance in enumerate(rows)]


def fill(folder: Path, rows: Sequence[Exchange]) -> Place:
    """A store that holds them."""
    place = Place(folder / "understudy.db")
    with contextlib.closing(place.repository()) as store:
        store.put(rows)
    return place


def config_file(folder: Path, student: str, teacher: str = "http://127.0.0.1:9/v1",
                **distill: Any) -> Path:  # fmt: skip
    """A configuration whose task is distilled from that store by the classifier alone."""
    data = {
        "store": "sqlite:///./understudy.db",
        "cache": str(CACHE),
        "tasks": [
            {
                "name": TASK,
                "teacher": {"base_url": teacher, "model": "big-1",
                            "price": {"input": 2.5, "output": 10.0}},
                "student": {"classifier_urls": [student], "classifier_price_per_hour": 0.02},
                "distill": {
                    "shares": {"test": 0.2, "calibrate": 0.45, "combine": 0.2, "dev": 0.05},
                    **distill,
                },
            }
        ],
    }  # fmt: skip
    path = folder / "understudy.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
