"""The simulated fortnight in its short form; ``make nights`` lives through all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.nights.__main__ import Told, broken_promises
from tests.fakes.rig import ROOT


@pytest.mark.timeout(900)
def test_six_days_with_every_mishap(tmp_path: Path) -> None:
    """New intents, a teacher that changes, poison, a broken training, a killed run."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.nights", "--short", "--folder", str(tmp_path / "nights")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    told = json.loads(done.stdout)
    assert told["broken"] == []
    nights = {night["event"]: night for night in told["nights"]}
    assert nights[None]["decision"] == "promoted"
    for event in ("poison", "broken_training"):
        assert nights[event]["decision"] == "refused"
        assert "agreement" in nights[event]["reason"]
    assert nights["teacher_changes"]["audit"]["status"] in ("unproven", "refuted")
    assert any("done again" in note for note in nights["killed"]["notes"])
    # What is served agrees again once the new words were learned.
    last = told["nights"][-1]
    assert last["agreement"] > 0.93
    assert last["served"] > 0.5
    page = (tmp_path / "nights/report.html").read_text()
    assert "<svg" in page and "Every promise was kept." in page


def told(day: int, event: str | None, decision: str, served: float = 0.5, *notes: str) -> Told:
    return Told(
        day, event, 100, served, 0.97, {}, None, {}, decision, "why", "s@v1", "classifier", None,
        {}, 0.0, 1.0, list(notes),
    )  # fmt: skip


def test_broken_promises_are_seen() -> None:
    good = [
        told(1, None, "promoted"),
        told(2, "new_intents", "promoted", 0.4),
        told(3, "poison", "refused", 0.6),
        told(4, "killed", "waiting", 0.6, "killed in evaluate: yes", "done again: {'evaluate': 2}"),
    ]
    assert broken_promises(good) == []
    assert "poison: the run ended promoted" in broken_promises([told(1, "poison", "promoted")])
    assert any("killed" in b for b in broken_promises([told(1, "killed", "promoted")]))
    assert "no student was ever promoted" in broken_promises([told(1, None, "refused")])
    flat = [good[0], told(2, "new_intents", "promoted", 0.6), told(3, None, "waiting", 0.5)]
    assert "coverage did not rise" in broken_promises(flat)[0]
