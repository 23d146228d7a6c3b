"""Nearest training prompts among very many: a graph index of usearch (HNSW, int8).

Malkov & Yashunin, arXiv 1603.09320; https://github.com/unum-cloud/usearch (Apache-2.0). It is kept
as bytes in the artefact's safetensors, so that it is hashed with everything else, and is looked at
before the library parses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

CONNECTIVITY = 16
EXPANSION = 64
ADD_ROWS = 50_000
ONE_THREAD_ROWS = 100_000
"""Up to here the index is built by one thread, and so always the same; beyond, time matters more.
"""


class PromptIndex:
    """Cosine similarity to the approximately nearest of many unit vectors."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def fitted(cls, vectors: Floats) -> Self:
        """Build from (n, d) unit vectors."""
        from usearch.index import Index

        index = Index(
            ndim=vectors.shape[1], metric="cos", dtype="i8", connectivity=CONNECTIVITY,
            expansion_add=EXPANSION, expansion_search=EXPANSION,
        )  # fmt: skip
        threads = 1 if len(vectors) <= ONE_THREAD_ROWS else 0
        for start in range(0, len(vectors), ADD_ROWS):
            block = vectors[start : start + ADD_ROWS]
            index.add(np.arange(start, start + len(block)), block, threads=threads)
        return cls(index)

    @classmethod
    def restored(cls, raw: npt.NDArray[np.uint8], width: int) -> Self:
        """Rebuild from what ``state`` gave.

        Raises:
            ValueError: the bytes are no such index, or one of another width.
        """
        from usearch.index import Index

        data = raw.tobytes()
        try:
            found = Index.metadata(data)
            if not found or found.get("dimensions") != width or not found.get("count_present"):
                raise ValueError("not an index of this width")
            index = Index.restore(data)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"index: {error}") from error
        if index is None or len(index) != found["count_present"]:
            raise ValueError("index: cannot be restored")
        return cls(index)

    def without(self, rows: Sequence[int]) -> Self:
        """An index of all but these rows, built anew: a row that is only marked as removed would
        still be in the bytes."""
        keys = np.setdiff1d(np.arange(len(self._index)), rows)
        return self.fitted(np.asarray(self._index.get(keys), dtype=np.float32))

    def state(self) -> npt.NDArray[np.uint8]:
        """The index as bytes."""
        return np.frombuffer(self._index.save(), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def width(self) -> int:
        """Dimensions."""
        return int(self._index.ndim)

    def similarity(self, vectors: Floats, k: int) -> Floats:
        """Mean cosine similarity to the ``k`` nearest, shape (m,)."""
        out = np.empty(len(vectors), dtype=np.float32)
        for row, vector in enumerate(vectors):
            out[row] = 1.0 - self._index.search(vector, k).distances.mean()
        return out
