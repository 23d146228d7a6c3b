"""The simulated fortnight in its short form; ``make nights`` lives through all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    assert nights["new_intents"]["new_intents_right"] < 0.05
    assert told["nights"][-1]["new_intents_right"] > 0.3
    # What is served agrees again once the new words were learned.
    last = told["nights"][-1]
    assert last["agreement"] > 0.93
    assert last["served"] > 0.5
    page = (tmp_path / "nights/report.html").read_text()
    assert "<svg" in page and "Every promise was kept." in page


def told(
    day: int, event: str | None, decision: str, new: float | None = None, *notes: str,
    past: dict[str, Any] | None = None,
) -> Told:  # fmt: skip
    return Told(
        day=day, event=event, requests=100, served=0.5, agreement=0.97, new_intents_right=new,
        reasons={}, audit=None, gate={}, decision=decision, reason="why", student="s@v1",
        kind="classifier", certificate=None, agreement_on_test={}, regression=past, cost_usd=0.0,
        run_seconds=1.0, notes=list(notes),
    )  # fmt: skip


def test_broken_promises_are_seen() -> None:
    good = [
        told(1, None, "promoted"),
        told(
            2, "new_intents", "promoted", 0.0, past={"rows": 9, "incumbent": 0.1, "candidate": 0.9}
        ),
        told(3, "poison", "refused", 0.6),
        told(4, "killed", "waiting", 0.6, "killed in evaluate: yes", "done again: {'evaluate': 2}"),
    ]
    assert broken_promises(good) == []
    assert "poison: the run ended promoted" in broken_promises([told(1, "poison", "promoted")])
    assert any("killed" in b for b in broken_promises([told(1, "killed", "promoted")]))
    assert "no student was ever promoted" in broken_promises([told(1, None, "refused")])
    flat = [good[0], told(2, "new_intents", "promoted", 0.0), told(3, None, "waiting", 0.0)]
    assert "no more of the new intents" in broken_promises(flat)[0]
    worse = told(1, None, "promoted", past={"incumbent": 0.5, "candidate": 0.4})
    assert "worse on past failures" in broken_promises([worse])[0]
