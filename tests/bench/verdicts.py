"""Real vLLM end to end, streamed and not: ``python -m tests.bench.verdicts [REQUESTS]``.

Held-out traffic in the demo's mix through the gateway, twice; are the verdicts the same, and what
are coverage and agreement?
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from deploy.demo.processes import Children
from deploy.demo.task import Utterance, traffic
from deploy.demo.vllm import VllmSettings, load_adapter, start_vllm, vllm_ready
from tests.fakes.process import free_port
from tests.fakes.rig import ARTEFACTS, ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON, Vllm
from tests.ml.test_real_vllm import ask_all, over

SEED = 11


def main() -> int:
    """Start vLLM, play both ways, report."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 800
    rows = traffic(ROOT / "tests/data/clinc150", count, seed=SEED)
    with tempfile.TemporaryDirectory() as folder, Children(Path(folder) / "logs") as children:
        settings = VllmSettings(STUDENT_PYTHON, BASE, free_port())
        child = start_vllm(children, settings)
        vllm_ready(child, settings)
        load_adapter(settings, "banking-intents@v1", ARTEFACTS / "student/v1")
        print(json.dumps(asyncio.run(_played(Vllm(child, settings), Path(folder), rows))))
    return 0


async def _played(vllm: Vllm, folder: Path, rows: Sequence[Utterance]) -> dict[str, Any]:
    async with over(vllm, folder) as r:
        whole = await ask_all(r, list(rows), stream=False)
        streamed = await ask_all(r, list(rows), stream=True)
        answers = [_answer(response) for response in whole]
    verdicts = [(_verdict(a), _verdict(b)) for a, b in zip(whole, streamed, strict=True)]
    served = [i for i, (a, _) in enumerate(verdicts) if a == ("student", "in_distribution")]
    right = sum(answers[i].strip() == rows[i].label for i in served)
    inside = [i for i, row in enumerate(rows) if row.slice == "in_domain"]
    return {
        "requests": len(rows),
        "identical_verdicts": sum(a == b for a, b in verdicts) / len(rows),
        "coverage": len(served) / len(rows),
        "coverage_in_domain": len(set(inside) & set(served)) / len(inside),
        "served": len(served),
        "agreement": right / len(served),
    }


def _verdict(response: httpx.Response) -> tuple[str, str]:
    headers = response.headers
    return headers["x-understudy-served-by"], headers["x-understudy-reason"]


def _answer(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


if __name__ == "__main__":
    sys.exit(main())
