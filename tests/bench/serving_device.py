"""The shipped student on this machine's vLLM: is a judge fitted elsewhere still right about it?

The shipped rows hold the student's answers and log-probabilities from two CPU cores. A GPU adds
the same numbers in another order, and in bf16 some first tokens come out otherwise: this asks for
every row again and says how many answers, log-probabilities and verdicts differ. Run on the kind of
machine that served the rows, it says what batching alone changes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.demo.processes import Children
from deploy.demo.vllm import VllmSettings, load_adapter, start_vllm, vllm_ready
from distill.answers import StudentEndpoint, with_student_answers
from router.encoder import load_encoders
from router.judge import Judge
from router.rows import Row, read_rows, usable
from tests.fakes.process import free_port
from tests.fakes.rig import ARTEFACTS, CACHE, ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON

ROWS = ROOT / "tests/data/banking-intents"
NAME = "banking-intents@v1"
MAX_TOKENS = 16
LOADS = (1, 8, 32)


def main() -> None:
    """Start vLLM, ask, compare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4000)
    wanted = parser.parse_args()
    shipped = [
        row
        for name in ("combine", "calibrate")
        for row in read_rows(ROWS / f"{name}.jsonl.gz")
        if row.student is not None
    ][: wanted.rows]
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="var"))).resolve()
        children = stack.enter_context(Children(logs))
        settings = VllmSettings(STUDENT_PYTHON, BASE, free_port())
        ready = vllm_ready(start_vllm(children, settings), settings)
        load_adapter(settings, NAME, ARTEFACTS / "student/v1")
        endpoint = StudentEndpoint(settings.url, NAME, MAX_TOKENS)
        speeds = {str(n): _speed(replace(endpoint, concurrency=n), shipped) for n in LOADS}
        here = _asked(replace(endpoint, concurrency=LOADS[-1]), shipped)
    result = {"vllm_ready_s": round(ready, 1), "speed_by_requests_at_once": speeds}
    print(json.dumps(result | _compared(shipped, here), indent=1))


def _asked(endpoint: StudentEndpoint, rows: Sequence[Row]) -> list[Row]:
    bare = [replace(row, student=None) for row in rows]
    return asyncio.run(with_student_answers(bare, endpoint, lambda: None))


def _speed(endpoint: StudentEndpoint, rows: Sequence[Row]) -> dict[str, float]:
    """Requests per second, and the mean milliseconds of one, over at least a hundred."""
    part = rows[: max(100, 40 * endpoint.concurrency)]
    _asked(endpoint, part[: 2 * endpoint.concurrency])  # what is compiled on first use
    started = time.perf_counter()
    _asked(endpoint, part)
    took = time.perf_counter() - started
    return {
        "requests_per_s": round(len(part) / took, 2),
        "ms": round(1000 * took * endpoint.concurrency / len(part), 2),
    }


def _compared(shipped: Sequence[Row], here: Sequence[Row]) -> dict[str, Any]:
    judge = Judge.load(ARTEFACTS / "router/v1", load_encoders(CACHE))
    threshold = judge.threshold
    assert threshold is not None, "the shipped judge is certified"
    first = [
        abs(a.student.tokens[0].logprob - b.student.tokens[0].logprob)
        for a, b in zip(shipped, here, strict=True)
        if a.student is not None and b.student is not None
        if a.student.tokens and b.student.tokens
        if a.student.tokens[0].token == b.student.tokens[0].token
    ]
    there, now = (_served(judge, threshold, rows) for rows in (shipped, here))
    pairs = list(zip(shipped, here, strict=True))
    return {
        "rows": len(pairs),
        "other_answers": sum(a.student.text != b.student.text for a, b in pairs
                             if a.student is not None and b.student is not None),
        "first_logprob_differs_by": {
            "median": round(float(np.median(first)), 5),
            "p99": round(float(np.quantile(first, 0.99)), 4),
            "largest": round(max(first), 4),
        },
        "other_verdicts": sum(a != b for a, b in zip(there, now, strict=True)),
        "served": {"shipped": _right(shipped, there), "here": _right(here, now)},
    }  # fmt: skip


def _served(judge: Judge, threshold: float, rows: Sequence[Row]) -> list[bool]:
    return [
        usable(row.student) and judge.decide(row.messages, row.student).score < threshold
        for row in rows
    ]


def _right(rows: Sequence[Row], served: Sequence[bool]) -> dict[str, int]:
    answers = [row for row, serve in zip(rows, served, strict=True) if serve]
    wrong = sum(row.student is None or row.student.text != row.completion for row in answers)
    return {"rows": len(answers), "disagree": wrong}


if __name__ == "__main__":
    main()
