"""A million prompts in the index: memory, latency, recall. ``python -m tests.bench.index [ROWS]``.

Vectors are drawn around 20,000 centres, as prompts of a task are; latency is of one search on one
thread, recall@10 against exact search.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import numpy.typing as npt

from router.index import PromptIndex

WIDTH, CENTRES, QUERIES = 384, 20_000, 400


def main() -> int:
    """Build, search, report."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, WIDTH)).astype(np.float32)

    def made(count: int) -> npt.NDArray[np.float32]:
        noise = rng.normal(size=(count, WIDTH)).astype(np.float32)
        points = centres[rng.integers(0, CENTRES, count)] + np.float32(0.8) * noise
        unit: npt.NDArray[np.float32] = points / np.linalg.norm(points, axis=1, keepdims=True)
        return unit

    vectors = np.vstack([made(50_000) for _ in range(rows // 50_000)])
    started = time.perf_counter()
    index = PromptIndex.fitted(vectors)
    built_s = time.perf_counter() - started
    state = index.state()
    queries = made(QUERIES)
    exact = np.zeros((QUERIES, 10), np.int64)
    best = np.full((QUERIES, 10), -2.0, np.float32)
    for start in range(0, len(vectors), 50_000):
        similarity = queries @ vectors[start : start + 50_000].T
        both = np.hstack([best, similarity])
        ids = np.hstack([exact, np.broadcast_to(np.arange(start, start + similarity.shape[1]),
                                                similarity.shape)])  # fmt: skip
        top = np.argpartition(-both, 10, axis=1)[:, :10]
        best, exact = np.take_along_axis(both, top, 1), np.take_along_axis(ids, top, 1)
    took, hits = [], 0
    for row in range(QUERIES):
        begun = time.perf_counter()
        index.similarity(queries[row : row + 1], 10)
        took.append((time.perf_counter() - begun) * 1000)
        found = index._index.search(queries[row], 10).keys
        hits += len(set(map(int, found)) & set(map(int, exact[row])))
    print(
        json.dumps(
            {
                "rows": len(index),
                "index_mb": round(len(state) / 1e6),
                "build_s": round(built_s),
                "search_ms_p50": round(float(np.percentile(took, 50)), 3),
                "search_ms_p99": round(float(np.percentile(took, 99)), 3),
                "recall_at_10": round(hits / (10 * QUERIES), 4),
                "max_rss_mb_with_float32_copy": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
                ),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
