"""The router against its baselines: ``make bench-router``.

Writes ``var/bench/router.json`` and ``router.md``. Needs the shared data folder of DESIGN (or
``DATA=...``) for CLINC150, Banking77 and chat prompts in full.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from router.encoder import load_encoders
from tests.bench import ood, routing
from tests.fakes.rig import CACHE, ROOT

OUT = ROOT / "var/bench"


def main() -> int:
    """Measure everything, print and write the report."""
    shared = Path(os.environ.get("DATA", ROOT.parent / "shared/data"))
    if not (shared / "clinc150").is_dir():
        print(f"{shared}: no such data; set DATA=FOLDER", file=sys.stderr)
        return 1
    encoders = load_encoders(CACHE)
    report = routes(encoders)
    if "--routes" in sys.argv:  # the quick half, without the OOD table
        print(json.dumps(report, indent=1))
        return 0
    questions = ood.cases(shared, encoders, _say)
    report["ood"] = ood.table(questions, encoders, _say)
    texts = questions[0].inside.texts
    report["encoding_us"] = {
        "sentence": round(ood.encoding_us(encoders.sentence, texts), 1),
        "static": round(ood.encoding_us(encoders.static, texts), 1),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "router.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    (OUT / "router.md").write_text(text)
    print(text)
    return 0


def routes(encoders: Any) -> dict[str, Any]:
    """Everything that needs the student's answers."""
    traffic = routing.heldout()
    report: dict[str, Any] = {"certified": []}
    with tempfile.TemporaryDirectory() as folder:
        for alpha in (0.02, 0.05):
            _say(f"fitting the demo's judge at alpha {alpha:g}")
            judge = routing.fitted(encoders, Path(folder), alpha)
            found = routing.scores(judge, traffic, encoders)
            report["certified"].append(routing.certified(judge, traffic, found["ours"]))
            report[f"latency_us_{alpha:g}"] = routing.latency(judge, traffic)
            report[f"attacks_{alpha:g}"] = routing.attack_table(judge, traffic, found["ours"])
            report[f"mixed_day_{alpha:g}"] = routing.mixed_day(judge, traffic, found)
        report["coverage"] = routing.coverage_table(found, traffic)
        report["ablations"] = routing.ablations(judge)
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    parts = [
        "## Out-of-distribution detection\n" + _table(report["ood"]),
        f"Embedding a text: {report['encoding_us']} µs.",
        "## Coverage of mixed traffic, real student\n" + _table(report["coverage"]),
        "## Certified thresholds on held-out traffic\n```json\n"
        + json.dumps(report["certified"], indent=1) + "\n```",
        "## Ablations (calibrate rows)\n" + _table(report["ablations"]),
    ]  # fmt: skip
    for alpha in ("0.02", "0.05"):
        latency = json.dumps(report[f"latency_us_{alpha}"])
        parts.append(f"## Latency, alpha {alpha}, CPU µs\n```json\n{latency}\n```")
        parts.append(f"## A mixed day, alpha {alpha}\n" + _table(report[f"mixed_day_{alpha}"]))
        parts.append(f"## Attacks, alpha {alpha}\n" + _table(report[f"attacks_{alpha}"]))
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(str(row[name]) for name in head)} |" for row in rows]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
