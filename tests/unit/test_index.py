"""The index of very many prompts: near enough to exact, the same after a round trip, and deaf to
bytes that are no index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from router import distance
from router.distance import Distance
from router.index import PromptIndex
from router.minilm import HIDDEN, WIDTH


def unit(rng: np.random.Generator, rows: int, width: int) -> npt.NDArray[np.float32]:
    points = rng.normal(size=(rows, width)).astype(np.float32)
    found: npt.NDArray[np.float32] = points / np.linalg.norm(points, axis=1, keepdims=True)
    return found


def test_similarity_is_near_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 3000, 32), unit(rng, 50, 32)
    index = PromptIndex.fitted(vectors)
    exact = np.sort(queries @ vectors.T, axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_allclose(index.similarity(queries, 10), exact, atol=0.03)
    again = PromptIndex.restored(index.state(), 32)
    np.testing.assert_array_equal(again.similarity(queries, 10), index.similarity(queries, 10))
    twin = PromptIndex.fitted(vectors)
    np.testing.assert_array_equal(twin.state(), index.state())


@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "other width", "zeros"])
def test_bytes_that_are_no_index_are_refused(damage: str) -> None:
    rng = np.random.default_rng(1)
    whole = PromptIndex.fitted(unit(rng, 500, 16)).state()
    raw = {
        "empty": whole[:0],
        "noise": rng.integers(0, 256, 4000).astype(np.uint8),
        "cut": whole[: len(whole) // 2],
        "other width": whole,
        "zeros": np.zeros_like(whole),
    }[damage]
    with pytest.raises(ValueError, match="index"):
        PromptIndex.restored(raw, 17 if damage == "other width" else 16)


def test_open_tasks_with_many_prompts_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "EXACT_ROWS", 100)
    rng = np.random.default_rng(2)
    vectors = unit(rng, 400, WIDTH)
    found = Distance.fitted(vectors, None)
    assert found.nearest.index_ is not None
    assert (len(found.nearest.index_), found.nearest.index_.width) == (400, HIDDEN)
    scores = found.scores(vectors[:5])
    assert (scores.similarity > 0.1).all()
    assert Distance.fitted(vectors[:100], None).nearest.index_ is None
