"""What a run learns from and is measured on: exchanges with the teacher's answer."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router.folders import new_file
from router.rows import Row
from router.template import Message

_NOT_WORD = re.compile(r"[^\w ]+")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its label.

    ``p`` is the probability that it was drawn with, None where it was not drawn. ``stale``:
    labelled before the teacher changed.
    """

    id: str
    created_at: float
    messages: tuple[Message, ...]
    completion: str
    by: str
    p: float | None
    served_by: str
    reason: str
    stale: bool = False

    @property
    def row(self) -> Row:
        """As training, the judge and comparators take it. A drawn row weighs 1 / p where it
        measures; in training every row counts once (ADR 010)."""
        weight = 1.0 / self.p if self.p else 1.0
        return Row(self.messages, self.completion, weight=weight)

    @property
    def key(self) -> str:
        """The prompt's text without case, punctuation and spacing: what duplicates share."""
        return " ".join(_NOT_WORD.sub(" ", self.row.text.lower()).split())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "messages": [[m.role, m.content] for m in self.messages]}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Example:
        """What ``to_json`` gave."""
        messages = tuple(Message(role, content) for role, content in raw["messages"])
        return cls(**{**raw, "messages": messages})


def write_examples(path: Path, examples: Iterable[Example]) -> str:
    """Write them, one a line, whole or not at all; equal examples give equal bytes.

    Returns:
        Hex SHA-256 of the lines.
    """
    data = "".join(
        json.dumps(e.to_json(), sort_keys=True, ensure_ascii=False) + "\n" for e in examples
    ).encode()
    with new_file(path) as new:
        new.write_bytes(gzip.compress(data, mtime=0))
    return hashlib.sha256(data).hexdigest()


def read_examples(path: Path) -> list[Example]:
    """What ``write_examples`` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        return [Example.from_json(json.loads(line)) for line in handle]


def rows_json(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """As ``student train`` reads them."""
    return [
        {"messages": [asdict(m) for m in e.messages], "completion": e.completion} for e in examples
    ]
