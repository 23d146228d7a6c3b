"""Files of distillation runs that hold text of exchanges, and how they forget."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from router.folders import new_file

PROMPT_FILES = (
    "examples.jsonl.gz", "train.jsonl.gz", "dev.jsonl.gz", "student.jsonl", "dev.jsonl",
    "evaluation.json",
)  # fmt: skip
REPORT = "report.html"
_ROW = re.compile(rb'<tr data-exchange="([0-9a-f]+)">.*?</tr>\n?', re.DOTALL)


def tidy(folder: Path) -> bool:
    """Remove the prompts of a run that is over: the store keeps them, and forgets them there.

    Returns:
        Whether there were any.
    """
    found = False
    for name in PROMPT_FILES:
        found = found or (folder / name).exists()
        (folder / name).unlink(missing_ok=True)
    for trial in folder.glob("trial-v*"):
        found = True
        shutil.rmtree(trial, ignore_errors=True)
    return found


def forget_in_report(path: Path, ids: Iterable[str]) -> int:
    """Take the rows of exchanges out of a report, by a new file in its place.

    Returns:
        How many rows went.

    Raises:
        OSError: it cannot be rewritten.
    """
    gone = {id_.encode() for id_ in ids}
    page = path.read_bytes()
    count = sum(match[1] in gone for match in _ROW.finditer(page))
    if count:
        with new_file(path) as new:
            new.write_bytes(_ROW.sub(lambda m: b"" if m[1] in gone else m[0], page))
    return count
