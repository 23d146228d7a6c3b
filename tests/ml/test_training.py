"""A LoRA student trained for real, a little: the best epoch by agreement, and from checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from router.rows import read_rows, write_rows
from tests.fakes.rig import ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON

ROWS = ROOT / "tests/data/banking-intents/train.jsonl.gz"


def command(folder: Path, epochs: int) -> list[str]:
    rows = read_rows(ROWS)
    for name, part in (("train", rows[:32]), ("dev", rows[32:40])):
        write_rows(
            folder / f"{name}.jsonl",
            ({"messages": [{"role": m.role, "content": m.content} for m in r.messages],
              "completion": r.completion} for r in part),
        )  # fmt: skip
    return [
        str(STUDENT_PYTHON), "-c", "from gateway.cli import main; main()", "student", "train",
        "--name", "t@v1", "--data", str(folder / "train.jsonl"), "--dev", str(folder / "dev.jsonl"),
        "--base", str(BASE), "--out", str(folder / "v1"), "--work", str(folder / "work"),
        "--epochs", str(epochs), "--max-tokens", "8",
    ]  # fmt: skip


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_killed_training_goes_on_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    asked = command(tmp_path, 2)
    log = (tmp_path / "log").open("wb")
    with log:
        first = subprocess.Popen(asked, cwd=ROOT, env=dict(os.environ), stdout=log, stderr=log)
        checkpoint = tmp_path / "work/fit-0"
        until = time.monotonic() + 240
        while not list(checkpoint.glob("checkpoint-*/trainer_state.json")):
            assert first.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < until
            time.sleep(0.1)
        first.kill()
        first.wait()
    assert not (tmp_path / "v1").exists()
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    manifest: dict[str, Any] = json.loads((tmp_path / "v1/manifest.json").read_text())
    metrics = manifest["metrics"]
    assert [round(e["epoch"]) for e in metrics["epochs"]] == [1, 2]
    assert metrics["dev_agreement"] == max(e["dev_agreement"] for e in metrics["epochs"])
    assert metrics["dev_rows"] == 8
    assert {p.name for p in (tmp_path / "v1").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    }  # fmt: skip
    assert not (tmp_path / "work/fit-0").exists(), "checkpoints go when they are not needed"
