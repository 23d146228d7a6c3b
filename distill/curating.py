"""Curate training rows: what is taken, and why each of the others is not."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from distill.examples import Example
from router.template import fingerprint

COPIES = 3
"""Near-duplicates of one group that are trained on."""
LOUDEST = 10
"""An answer may occur so many times as often as the median answer."""
LONGEST = 8000
"""Characters of a prompt with its answer: what fits a small student's window."""


class Rejected(StrEnum):
    """Why a training row is not trained on."""

    TOO_LONG = "too_long"
    CONTRADICTED = "contradicted"
    """The same prompt has another answer, given later."""
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    CONTAMINATED = "contaminated"
    """The same text is in a set that measures."""
    BALANCE = "balance"
    """There are enough rows of its kind."""


@dataclass(frozen=True, slots=True)
class Curated:
    """The training set, in order, and the reason of every row that is not in it."""

    rows: list[Example]
    rejected: dict[str, Rejected]

    @property
    def counts(self) -> dict[str, int]:
        """How many were rejected for which reason."""
        return dict(sorted(Counter(why.value for why in self.rejected.values()).items()))


def curate(
    examples: Sequence[Example], groups: dict[str, str], held: frozenset[str], most: int, seed: int
) -> Curated:
    """Choose at most ``most`` rows.

    Args:
        examples: training rows, in any order.
        groups: the duplicate group of each id.
        held: normalised texts of the sets that measure.
        most: the largest training set.
        seed: decides which of the older rows are replayed.
    """
    rejected: dict[str, Rejected] = {}
    kept: list[Example] = []
    said: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for example in sorted(examples, key=lambda e: (e.by != "human", -e.created_at, e.id)):
        why = _unfit(example, held, said, copies[groups[example.id]])
        if why is not None:
            rejected[example.id] = why
            continue
        said[example.key] = example.completion
        copies[groups[example.id]] += 1
        kept.append(example)
    chosen = _balanced(kept, most, seed)
    ids = {e.id for e in chosen}
    rejected |= {e.id: Rejected.BALANCE for e in kept if e.id not in ids}
    return Curated(sorted(chosen, key=lambda e: (e.created_at, e.id)), rejected)


def _unfit(
    example: Example, held: frozenset[str], said: dict[str, str], copies: int
) -> Rejected | None:
    key = example.key
    if sum(len(m.content) for m in example.messages) + len(example.completion) > LONGEST:
        return Rejected.TOO_LONG
    if key in held:
        return Rejected.CONTAMINATED
    if key in said:
        same = said[key] == example.completion
        return Rejected.DUPLICATE if same else Rejected.CONTRADICTED
    return Rejected.NEAR_DUPLICATE if copies >= COPIES else None


def _balanced(rows: Sequence[Example], most: int, seed: int) -> list[Example]:
    """No answer (or, where answers are open, template) far louder than the median one; and where
    there are too many rows still, the kinds in turn: new rows and replayed ones alternate."""
    kinds: dict[str, list[Example]] = defaultdict(list)
    closed = len({e.completion for e in rows}) * 3 <= len(rows)
    for example in rows:
        kinds[example.completion if closed else fingerprint(example.messages)].append(example)
    if not kinds:
        return []
    cap = LOUDEST * max(1, int(statistics.median(len(group) for group in kinds.values())))
    queues = [_alternating(kinds[kind], seed)[:cap] for kind in sorted(kinds)]
    chosen: list[Example] = []
    for turn in range(max(map(len, queues))):
        for queue in queues:
            if turn < len(queue) and len(chosen) < most:
                chosen.append(queue[turn])
    return chosen


def _alternating(rows: Sequence[Example], seed: int) -> list[Example]:
    """The newest, one out of all, the next newest, …: a student must not forget what it could."""
    newest = sorted(rows, key=lambda e: (-e.created_at, e.id))
    shuffled = sorted(rows, key=lambda e: hashlib.sha256(f"{seed}|{e.id}".encode()).digest())
    order = dict.fromkeys(e for pair in zip(newest, shuffled, strict=True) for e in pair)
    return list(order)
