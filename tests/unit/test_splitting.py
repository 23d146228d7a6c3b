"""Splits that stay: no text on two sides, whatever arrives in which order and on which night."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.examples import Example
from distill.splitting import MEASURES, Split, Splitting, duplicates, split
from gateway.distill_settings import SplitShares
from gateway.store.samples import Sample
from router.template import Message

SHARES = SplitShares(test=0.25, calibrate=0.3, combine=0.2, dev=0.1)
WORDS = ("card", "lost", "balance", "account", "please", "block", "transfer", "rate", "apr", "pin")


def example(number: int, text: str, p: float | None = None) -> Example:
    return Example(
        f"{number:08x}", float(number), (Message("user", text),), "x", "teacher", p,
        "teacher", "ood",
    )  # fmt: skip


TRAFFIC = st.lists(
    st.tuples(
        st.lists(st.sampled_from(WORDS), min_size=2, max_size=7).map(" ".join), st.booleans()
    ),
    min_size=1,
    max_size=60,
)


@given(TRAFFIC, st.integers(1, 5))
def test_no_group_is_on_two_sides_over_the_nights(
    traffic: Sequence[tuple[str, bool]], nights: int
) -> None:
    examples = [example(n, t, 0.5 if drawn else None) for n, (t, drawn) in enumerate(traffic)]
    known: dict[str, Sample] = {}
    learned: set[str] = set()
    for night in range(1, nights + 1):
        seen = examples[: len(examples) * night // nights]
        found = split(seen, known, SHARES, 7)
        _check(seen, found)
        for one in seen:
            before, after = known.get(one.id), found.samples[one.id]
            if before is not None:
                # Only ever to a stricter side, and then it is used for nothing.
                order = list(Split)
                assert order.index(Split(after.split)) <= order.index(Split(before.split))
                assert after.quarantined or after.split == before.split
        # What any student ever learned from measures nothing later.
        measured = {e.id for side in MEASURES for e in found.of(side, seen)}
        assert not measured & learned
        learned |= {e.id for side in (Split.TRAIN, Split.DEV) for e in found.of(side, seen)}
        known |= {s.exchange_id: s for s in found.changed}
        assert known == found.samples


def _check(seen: Sequence[Example], found: Splitting) -> None:
    sides: dict[str, set[str]] = defaultdict(set)
    for group in duplicates(seen):
        assert len({found.samples[seen[i].id].split for i in group}) == 1
    for one in seen:
        sample = found.samples[one.id]
        sides[sample.group].add(sample.split)
    assert all(len(s) == 1 for s in sides.values())
    for side in MEASURES:
        assert all(e.p is not None for e in found.of(side, seen))
    used = sum(len(found.of(side, seen)) for side in Split)
    rest = sum(found.counts.get(why, 0) for why in ("quarantined", "stale", "held_back"))
    assert used + rest == len(seen)


def test_the_place_does_not_depend_on_the_content() -> None:
    """Shares of draws come out as they were asked for, for hard prompts as for easy ones."""
    rng = random.Random(1)
    for vocabulary in ("abcdefgh", "stuvwxyz"):
        texts = ["".join(rng.choices(vocabulary, k=30)) for _ in range(4000)]
        found = split([example(n, t, 0.5) for n, t in enumerate(texts)], {}, SHARES, 7)
        for side in MEASURES:
            share = found.counts[side.value] / len(texts)
            assert share == pytest.approx(getattr(SHARES, side.value), abs=0.03)


def test_fallbacks_without_a_draw_are_all_for_learning() -> None:
    rng = random.Random(2)
    texts = ["".join(rng.choices("abcdefgh ", k=40)) for _ in range(500)]
    found = split([example(n, t) for n, t in enumerate(texts)], {}, SHARES, 7)
    assert found.counts["train"] + found.counts["dev"] == 500


def test_near_duplicates_are_found() -> None:
    texts = [
        "how do i report a lost credit card to the bank",
        "How do I report a lost credit card to the bank?!",
        "how do i report a lost credit card to the bank now",
        "what is the weather like in rome",
    ]
    groups = duplicates([example(n, t) for n, t in enumerate(texts)])
    assert sorted(map(sorted, groups)) == [[0, 1, 2], [3]]


def test_a_row_that_links_two_sides_takes_the_strictest() -> None:
    """Three texts, the middle one near to both: when it comes, the laxer side is quarantined."""
    left = "abcdefghijklmnopqrstuvwxyz abcdefghijkl"
    right = "abcdefghijklmnopqrstuvwxyz abcdefghijkl 01234"
    middle = "abcdefghijklmnopqrstuvwxyz abcdefghijkl 01"
    ends = [example(1, left, 0.5), example(2, right, 0.5)]
    if len(duplicates(ends)) != 2 or len(duplicates([*ends, example(3, middle)])) != 1:
        pytest.fail("the texts are not as the test needs them")
    known = {
        ends[0].id: Sample(ends[0].id, "left", "train"),
        ends[1].id: Sample(ends[1].id, "right", "test"),
    }
    linked = [*ends, example(3, middle, 0.5)]
    found = split(linked, known, SHARES, 7)
    assert [found.samples[e.id].split for e in linked] == ["test"] * 3
    assert [found.samples[e.id].quarantined for e in linked] == [True, False, False]
    assert found.counts["quarantined"] == 1
