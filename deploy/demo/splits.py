"""Write the demo task's rows as files: ``python -m deploy.demo.splits OUT``."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.demo.task import SEED, Utterance, make_splits, messages
from router.rows import write_rows

CLINC150 = Path("tests/data/clinc150")


def main(out: Path) -> None:
    """Write ``train``, ``combine`` and ``calibrate`` rows below ``out``."""
    splits = make_splits(CLINC150)
    for name, rows in (
        ("train", splits.train),
        ("combine", splits.combine),
        ("calibrate", splits.calibrate),
    ):
        write_rows(out / f"{name}.jsonl.gz", _rows(rows))


def _rows(utterances: Sequence[Utterance]) -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    return [
        {"messages": messages(u, rng), "completion": u.label, "slice": u.slice} for u in utterances
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
