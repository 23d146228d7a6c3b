"""Answers from labelled data: the text of the last user message is looked up."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from router.rows import Row, read_rows

UNKNOWN = "I answer from labelled data only, and this text is not in it."


class Answers:
    """Label by text; unlabelled text gets one fixed sentence."""

    def __init__(self, rows: Iterable[Row], aliases: Mapping[str, str] | None = None) -> None:
        self._labels = {
            _key(row.text): row.completion for row in rows if row.completion is not None
        }
        self._aliases: Mapping[str, str] = {}
        self._distinct: list[str] = []
        self.rename(aliases or {})

    @classmethod
    def load(cls, files: Iterable[Path]) -> Answers:
        """Read labelled rows (JSON Lines, ``.gz`` allowed)."""
        return cls(row for path in files for row in read_rows(path))

    def __len__(self) -> int:
        return len(self._labels)

    def rename(self, aliases: Mapping[str, str]) -> None:
        """Say other words for some labels from now on, as a provider does who changes a model
        behind its name."""
        self._aliases = dict(aliases)
        self._distinct = sorted({self._aliases.get(v, v) for v in self._labels.values()})

    def answer(self, text: str, noise: float, rng: random.Random) -> str:
        """The label, or with probability ``noise`` a wrong one."""
        label = self._labels.get(_key(text), UNKNOWN)
        label = self._aliases.get(label, label)
        if noise and self._distinct and rng.random() < noise:
            return rng.choice([other for other in self._distinct if other != label] or [label])
        return label


def _key(text: str) -> str:
    return " ".join(text.lower().split())
