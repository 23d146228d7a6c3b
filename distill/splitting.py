"""Split first: near-duplicates stay together, for good, and what measures is drawn.

A group's place follows from a hash of its name, so that nothing about its content decides, and it
is kept in the store, so that tomorrow's rows change nothing about yesterday's. Groups without a
draw serve learning alone: all of the teacher's answers to plain fallbacks are training data. Once
a group has a draw, its place is the hash's word over all splits.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from distill.examples import Example
from distill.executor import Executor, LocalExecutor
from gateway.distill_settings import SplitShares
from gateway.store.samples import Sample

NEAR = 0.8
"""Jaccard similarity of character 4-grams from which two prompts are near-duplicates."""
PERMUTATIONS = 64
SHINGLE = 4
AT_ONCE = 500
"""Texts of one part of the work."""


class Split(StrEnum):
    """What a group is for, from the strictest side to the laxest."""

    TEST = "test"
    CALIBRATE = "calibrate"
    COMBINE = "combine"
    DEV = "dev"
    TRAIN = "train"


_ORDER = list(Split)
MEASURES = frozenset({Split.TEST, Split.CALIBRATE, Split.COMBINE})
"""Splits that take draws only."""


@dataclass(frozen=True, slots=True)
class Splitting:
    """Every example's place, those that are new or changed, and counts."""

    samples: dict[str, Sample]
    changed: list[Sample]
    counts: dict[str, int]

    def of(self, split: Split, examples: Iterable[Example]) -> list[Example]:
        """The examples of a split that may be used."""
        drawn_only = split in MEASURES
        return [
            e for e in examples
            if self.samples[e.id].split == split and not self.samples[e.id].quarantined
            and not e.stale and (e.p is not None or not drawn_only)
        ]  # fmt: skip


def split(
    examples: Sequence[Example],
    known: Mapping[str, Sample],
    shares: SplitShares,
    seed: int,
    executor: Executor | None = None,
) -> Splitting:
    """Give every example its place.

    A row that links groups of different splits moves them to the strictest; rows that were on
    another side before are quarantined: a student may have learned them already.
    """
    placed: dict[str, Sample] = {}
    changed: list[Sample] = []
    for members in _groups(examples, known, executor or LocalExecutor()):
        name = _name(members, known)
        drawn = any(e.p is not None for e in members)
        sides = [Split(known[e.id].split) for e in members if e.id in known]
        side = min([*sides, _hashed(name, drawn, shares, seed)], key=_ORDER.index)
        for example in members:
            before = known.get(example.id)
            if before is None:
                sample = Sample(example.id, name, side)
            else:
                moved = before.split != side
                sample = replace(
                    before, group=name, split=side, quarantined=before.quarantined or moved
                )
            placed[example.id] = sample
            if sample != before:
                changed.append(sample)
    return Splitting(placed, changed, _counts(examples, placed))


def duplicates(examples: Sequence[Example], executor: Executor | None = None) -> list[list[int]]:
    """Places of examples that are near-duplicates of each other, directly or over others.

    Source of the method: Broder, On the resemblance and containment of documents (1997), with
    locality-sensitive hashing by datasketch.
    """
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS)
    union = _Union(len(examples))
    exact: dict[str, int] = {}
    keys = [example.key for example in examples]
    texts = list(dict.fromkeys(keys))
    marks = dict(
        zip(texts, (executor or LocalExecutor()).spread(sketched, texts, AT_ONCE), strict=True)
    )
    scheme = MinHash(num_perm=PERMUTATIONS).scheme
    shingled: dict[int, frozenset[str]] = {}
    for i, key in enumerate(keys):
        if key in exact:
            union.join(exact[key], i)
            continue
        exact[key] = i
        parts = shingles(key)
        mark = MinHash(num_perm=PERMUTATIONS, hashvalues=marks[key], scheme=scheme)
        for j in lsh.query(mark):
            # The sketch errs by a tenth and more; what it proposes is looked at.
            if jaccard(parts, shingled[j]) >= NEAR:
                union.join(j, i)
        lsh.insert(i, mark)
        shingled[i] = parts
    return union.sets()


def sketched(texts: list[str]) -> list[list[int]]:
    """MinHash values of each text: what costs the time."""
    return [[int(value) for value in sketch(shingles(text)).hashvalues] for text in texts]


def sketch(parts: frozenset[str]) -> Any:
    """The MinHash of a text's parts."""
    from datasketch import MinHash

    mark = MinHash(num_perm=PERMUTATIONS)
    mark.update_batch([part.encode() for part in parts])
    return mark


def _groups(
    examples: Sequence[Example], known: Mapping[str, Sample], executor: Executor
) -> list[list[Example]]:
    """Near-duplicates, and whatever was one group before, together."""
    found = duplicates(examples, executor)
    union = _Union(len(found))
    of_name: dict[str, int] = {}
    for number, members in enumerate(found):
        for i in members:
            sample = known.get(examples[i].id)
            if sample is not None:
                union.join(of_name.setdefault(sample.group, number), number)
    return [[examples[i] for number in part for i in found[number]] for part in union.sets()]


class _Union:
    """Disjoint sets of numbers."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, i: int, j: int) -> None:
        """Make their sets one."""
        a, b = sorted((self._root(i), self._root(j)))
        self._parent[b] = a

    def sets(self) -> list[list[int]]:
        """All of them, by their smallest number, each in order."""
        found: dict[int, list[int]] = defaultdict(list)
        for i in range(len(self._parent)):
            found[self._root(i)].append(i)
        return list(found.values())

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i


def _name(members: Sequence[Example], known: Mapping[str, Sample]) -> str:
    """The group's name: what its oldest known member has; else a digest of its first text."""
    oldest = sorted(members, key=lambda e: (e.created_at, e.id))
    for example in oldest:
        if example.id in known:
            return known[example.id].group
    return hashlib.sha256(oldest[0].key.encode()).hexdigest()[:16]


def _hashed(name: str, drawn: bool, shares: SplitShares, seed: int) -> Split:
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if drawn:
        for side in (Split.TEST, Split.CALIBRATE, Split.COMBINE):
            share = getattr(shares, side.value)
            if place < share:
                return side
            place -= share
    return Split.DEV if int.from_bytes(digest[8:16]) / 2**64 < shares.dev else Split.TRAIN


def shingles(text: str) -> frozenset[str]:
    """Character 4-grams."""
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared parts over all parts."""
    return len(one & other) / max(1, len(one | other))


def _counts(examples: Sequence[Example], placed: Mapping[str, Sample]) -> dict[str, int]:
    """Usable rows of each split, and what is not usable and why."""
    counts: Counter[str] = Counter({side.value: 0 for side in Split})
    for example in examples:
        sample = placed[example.id]
        if sample.quarantined:
            counts["quarantined"] += 1
        elif example.stale:
            counts["stale"] += 1
        elif Split(sample.split) in MEASURES and example.p is None:
            counts["held_back"] += 1
        else:
            counts[sample.split] += 1
    counts["groups"] = len({s.group for s in placed.values()})
    return dict(counts)
