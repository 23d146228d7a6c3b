"""The real Prometheus and promtool of Debian's package, unpacked by ``make prometheus``."""

from __future__ import annotations

import pytest

from tests.fakes.rig import ROOT

BIN = ROOT / ".cache/prometheus/usr/bin"


def promtool() -> str:
    """Its path. It is never skipped: without it the tests fail and say why."""
    return _found("promtool")


def _found(name: str) -> str:
    path = BIN / name
    if not path.exists():
        pytest.fail(f"{name} is missing; run 'make prometheus'")
    return str(path)
