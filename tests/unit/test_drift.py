"""Drift: the test is scipy's, and asking it imports nothing while requests wait."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from router.drift import Reference, compare

COUNTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=2, max_size=10)


@given(COUNTS)
def test_the_p_value_is_that_of_the_chi_squared_test(pairs: list[tuple[int, int]]) -> None:
    expected, found = (np.array(side) for side in zip(*pairs, strict=True))
    if not expected.sum() or not found.sum():
        return
    edges = tuple(float(edge) for edge in range(1, len(pairs)))
    scores = (np.repeat(np.arange(len(pairs)), found) + 0.5).astype(np.float64)
    drift = compare(Reference(edges, tuple(int(count) for count in expected)), scores)
    used = np.vstack([expected, found])[:, expected + found > 0]
    wanted = chi2_contingency(used).pvalue if used.shape[1] > 1 else 1.0
    assert drift.p_value == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_a_look_for_drift_imports_nothing() -> None:
    """It runs inside a transaction of the store: while ``scipy.stats`` was loaded there, for a
    second or two, no answer could be committed."""
    code = (
        "import sys, numpy as np, gateway.auditor\n"
        "from router.drift import Reference, compare\n"
        "before = set(sys.modules)\n"
        "compare(Reference((0.5,), (250, 250)), np.linspace(0, 1, 500))\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
