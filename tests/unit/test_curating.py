"""What is trained on, and why the rest is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from distill.curating import COPIES, LONGEST, Curated, Rejected, curate
from distill.examples import Example, read_examples, write_examples
from router.template import Message
from tests.unit.test_splitting import example


def curated(examples: Sequence[Example], most: int = 100, held: Sequence[str] = ()) -> Curated:
    groups = {e.id: e.key for e in examples}
    return curate(examples, groups, frozenset(held), most, 7)


def test_reasons() -> None:
    base = example(10, "one two three")
    rows = [
        base,
        example(9, "ONE, two three!"),
        replace(example(8, "one two three"), completion="y"),
        example(7, "held out"),
        example(6, "z" * LONGEST),
        example(5, "kept"),
    ]
    found = curated(rows, held=["held out"])
    assert [e.id for e in found.rows] == [rows[5].id, base.id]
    assert found.rejected == {
        rows[1].id: Rejected.DUPLICATE,
        rows[2].id: Rejected.CONTRADICTED,
        rows[3].id: Rejected.CONTAMINATED,
        rows[4].id: Rejected.TOO_LONG,
    }


def test_what_a_person_said_goes_before_what_came_later() -> None:
    said = replace(example(1, "same"), completion="right", by="human")
    later = replace(example(9, "same"), completion="wrong")
    found = curated([later, said])
    assert [e.completion for e in found.rows] == ["right"]
    assert found.rejected == {later.id: Rejected.CONTRADICTED}


def test_near_duplicates_are_few() -> None:
    rows = [example(n, f"text number {n}") for n in range(6)]
    found = curate(rows, {e.id: "one group" for e in rows}, frozenset(), 100, 7)
    assert len(found.rows) == COPIES
    assert set(found.rejected.values()) == {Rejected.NEAR_DUPLICATE}


def test_no_answer_is_far_louder_than_the_median_one() -> None:
    loud = [replace(example(n, f"loud {n}"), completion="loud") for n in range(900)]
    rest = [replace(example(1000 + n, f"rest {n}"), completion=f"a{n % 10}") for n in range(100)]
    found = curated([*loud, *rest], most=5000)
    assert sum(e.completion == "loud" for e in found.rows) == 100
    assert sum(e.completion != "loud" for e in found.rows) == 100


def test_old_rows_are_replayed_beside_new_ones() -> None:
    rows = [replace(example(n, f"text {n}"), completion=f"a{n % 2}") for n in range(1000)]
    found = curated(rows, most=200)
    new = sum(e.created_at >= 800 for e in found.rows)
    assert len(found.rows) == 200
    assert 100 <= new <= 150
    assert min(e.created_at for e in found.rows) < 100


TEXTS = st.lists(st.text("abc ", min_size=1, max_size=8), min_size=1, max_size=40)


@given(TEXTS, st.integers(1, 50), st.randoms(use_true_random=False))
def test_every_row_is_taken_or_has_its_reason(texts: list[str], most: int, rng: Random) -> None:
    rows = [example(n, t) for n, t in enumerate(texts) if t.strip()]
    found = curated(rows, most)
    taken = {e.id for e in found.rows}
    assert taken | set(found.rejected) == {e.id for e in rows}
    assert not taken & set(found.rejected)
    assert len(found.rows) <= most
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert curated(shuffled, most) == found


def test_files_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    rows = [
        replace(example(1, 'é \u2028 "x"'), p=0.02, by="human"),
        replace(example(2, "b"), messages=(Message("system", "s"), Message("user", "b"))),
    ]
    assert write_examples(path, rows) == write_examples(path, rows)
    assert read_examples(path) == rows
