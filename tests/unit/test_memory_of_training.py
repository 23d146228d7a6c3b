"""A batch goes through the memory that is there, and stays the same batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.memory import SHARE, MemoryTooSmall, Passes, Shape, _container_room, needed, passes

MIB = 2**20
SMALL = Shape(layers=30, hidden=576, vocabulary=49_152, longest=64, answer=8)
SHAPES = st.builds(
    Shape,
    layers=st.integers(1, 80), hidden=st.integers(64, 8192), vocabulary=st.integers(1000, 200_000),
    longest=st.integers(1, 8192), answer=st.integers(1, 512), gpu=st.booleans(),
    single=st.booleans(),
)  # fmt: skip


def test_what_fits_is_computed_at_once() -> None:
    assert passes(16, SMALL, 64 * 2**30) == Passes(16, 1)


def test_in_less_memory_fewer_rows_at_once() -> None:
    room = int(needed(5, SMALL.kept()) / SHARE)
    assert passes(16, SMALL, room) == Passes(4, 4)
    assert passes(12, SMALL, room) == Passes(4, 3)


def test_activations_are_computed_again_only_where_not_one_row_fits() -> None:
    room = int(needed(1, SMALL.kept()) / SHARE) - MIB
    found = passes(16, SMALL, room)
    assert found.checkpointing
    assert not passes(16, SMALL, int(needed(1, SMALL.kept()) / SHARE) + MIB).checkpointing


def test_single_precision_takes_more() -> None:
    single = replace(SMALL, single=True)
    assert single.kept() > 1.2 * SMALL.kept()
    assert single.checkpointed() > SMALL.checkpointed()


def test_where_nothing_fits_it_says_what_is_missing() -> None:
    with pytest.raises(MemoryTooSmall, match=r"a row of 64 tokens needs \d+ MiB .* of 1 MiB free"):
        passes(16, SMALL, MIB)


@given(batch=st.integers(1, 64), shape=SHAPES, free=st.integers(0, 2**40))
def test_the_batch_stays_and_the_memory_holds(batch: int, shape: Shape, free: int) -> None:
    try:
        found = passes(batch, shape, free)
    except MemoryTooSmall:
        assert needed(1, min(shape.checkpointed(), shape.kept())) > SHARE * free
        return
    row = shape.checkpointed() if found.checkpointing else shape.kept()
    assert found.at_once * found.steps == batch
    assert needed(found.at_once, row) <= SHARE * free
    more = [n for n in range(found.at_once + 1, batch + 1) if batch % n == 0]
    assert all(needed(n, row) > SHARE * free for n in more), "more rows would have fitted"


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert _container_room(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert _container_room(tmp_path) == []
    (tmp_path / "memory.max").write_text("5000\n")
    assert _container_room(tmp_path) == [4000]
    (tmp_path / "memory.current").write_text("6000\n")
    assert _container_room(tmp_path) == [0]
