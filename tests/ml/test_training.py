"""A LoRA student trained for real, a little: the best epoch by agreement, and from checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from router.rows import Row, read_rows, write_rows
from tests.fakes.rig import ROOT
from tests.ml.conftest import BASE, STUDENT_PYTHON

ROWS = ROOT / "tests/data/banking-intents/train.jsonl.gz"


def told(row: Row) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in row.messages]
    return {"messages": messages, "completion": row.completion}


def command(folder: Path, epochs: int) -> list[str]:
    rows = read_rows(ROWS)
    for name, part in (("train", rows[:32]), ("dev", rows[32:40])):
        write_rows(folder / f"{name}.jsonl", map(told, part))
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


TRAIN = """
import json, sys
from pathlib import Path
from unittest import mock

import numpy as np
from safetensors.torch import load_file

from distill import memory, train
from router.rows import read_rows

data, base, out, at_once, again = sys.argv[1:]
settings = train.TrainSettings(epochs=1.0, batch_size=4)
found = memory.Passes(int(at_once), 4 // int(at_once), again == "again")
with mock.patch.object(memory, "passes", lambda batch, shape, free: found):
    told = train.train_student("t@v1", read_rows(Path(data)), Path(base), Path(out), settings)
learned = load_file(Path(out) / "adapter_model.safetensors")
up = [learned[key].float().numpy().ravel() for key in sorted(learned) if "lora_B" in key]
np.save(out + ".npy", np.concatenate(up))
print(json.dumps(told["metrics"]))
"""
"""What is learned starts from zero in LoRA's second matrices (Hu et al., arXiv 2106.09685)."""


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_in_little_memory_the_student_learns_the_same(tmp_path: Path) -> None:
    """Fewer rows at once, activations computed again: the same batches, so nearly the same
    weights (sums in another order, in half precision). A row that is longer than the model's
    context is left out rather than cut."""
    rows = [told(row) for row in read_rows(ROWS)[:16]]
    long = {"messages": [{"role": "user", "content": "word " * 9000}], "completion": "never"}
    write_rows(tmp_path / "rows.jsonl", [*rows, long])
    learned, losses = dict[str, npt.NDArray[np.float32]](), dict[str, float]()
    for name, at_once, again in (("whole", 4, "kept"), ("parts", 2, "kept"), ("least", 1, "again")):
        done = subprocess.run(
            [str(STUDENT_PYTHON), "-c", TRAIN, str(tmp_path / "rows.jsonl"), str(BASE),
             str(tmp_path / name), str(at_once), again],
            cwd=ROOT, capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        metrics = json.loads(done.stdout.splitlines()[-1])
        assert metrics["too_long"] == 1
        assert metrics["rows_at_once"] == at_once
        assert metrics["checkpointing"] == (again == "again")
        learned[name], losses[name] = np.load(tmp_path / f"{name}.npy"), metrics["train_loss"]
    whole = learned["whole"]
    for name in ("parts", "least"):
        assert losses[name] == pytest.approx(losses["whole"], rel=0.02)
        cosine = learned[name] @ whole / np.linalg.norm(learned[name]) / np.linalg.norm(whole)
        assert cosine > 0.9, name
