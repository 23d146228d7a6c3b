"""What ships is what its manifests say, and can be made again from the shipped rows."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open

from deploy.demo.splits import main as write_splits
from deploy.demo.task import INTENTS, load, make_splits, normalised, traffic
from distill.digest import file_sha256
from router.data import Data
from router.encoder import load_encoders
from router.fit import fit_artefact
from router.judge import Judge
from router.manifest import FitSettings
from router.rows import read_rows
from tests.fakes.rig import ARTEFACTS, CACHE, ROOT
from tests.ml.conftest import STUDENT_PYTHON

CLINC150 = ROOT / "tests/data/clinc150"
ROWS = ROOT / "tests/data/banking-intents"
STUDENT = ARTEFACTS / "student/v1"


def rows() -> Data:
    """The shipped rows."""
    return Data(*(read_rows(ROWS / f"{n}.jsonl.gz") for n in ("train", "combine", "calibrate")))


def test_the_adapter_is_the_one_of_its_manifest() -> None:
    manifest = json.loads((STUDENT / "manifest.json").read_text())
    assert manifest["name"] == "banking-intents@v1"
    for name, digest in manifest["files"].items():
        assert file_sha256(STUDENT / name) == digest
    config = json.loads((STUDENT / "adapter_config.json").read_text())
    assert config["r"] == manifest["settings"]["rank"]
    with safe_open(STUDENT / "adapter_model.safetensors", framework="np") as weights:
        # 30 layers, 7 projections, two matrices each.
        assert len(weights.keys()) == 30 * 7 * 2


def test_the_judge_pins_the_student_and_the_rows() -> None:
    manifest = json.loads((ARTEFACTS / "router/v1/manifest.json").read_text())
    assert manifest["student"] == {
        "name": "banking-intents@v1",
        "sha256": file_sha256(STUDENT / "manifest.json"),
    }
    for name in ("train", "combine", "calibrate"):
        assert manifest["splits"][name]["rows"] == len(read_rows(ROWS / f"{name}.jsonl.gz"))
    assert manifest["splits"]["train"]["rows"] == 2700
    assert set(manifest["classes"]) == INTENTS


def test_the_shipped_rows_are_those_of_the_split_script(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for name in ("train", "combine", "calibrate"):
        made = read_rows(tmp_path / f"{name}.jsonl.gz")
        shipped = read_rows(ROWS / f"{name}.jsonl.gz")
        assert [(r.messages, r.completion) for r in made] == [
            (r.messages, r.completion) for r in shipped
        ]


def test_no_text_is_in_two_splits_nor_in_the_traffic() -> None:
    splits = make_splits(CLINC150)
    parts = [
        {normalised(u.text) for u in p} for p in (splits.train, splits.combine, splits.calibrate)
    ]
    parts.append({normalised(u.text) for u in traffic(CLINC150, 1200)})
    for index, part in enumerate(parts):
        for other in parts[index + 1 :]:
            assert not part & other
    assert len(load(CLINC150, "test")) == 4500


def test_the_data_is_what_its_source_lists() -> None:
    listed = (CLINC150 / "SHA256SUMS").read_text().splitlines()
    assert len(listed) == 6
    for line in listed:
        digest, name = line.split()
        assert hashlib.sha256((CLINC150 / name).read_bytes()).hexdigest() == digest
    assert (CLINC150 / "LICENSE.txt").is_file()
    assert (ROWS / "LICENSE.txt").is_file()


def test_the_judge_can_be_fitted_again(tmp_path: Path) -> None:
    settings = FitSettings("banking-intents", "v1", alpha=0.02, student="banking-intents@v1")
    encoder = load_encoders(CACHE)
    again = fit_artefact(rows(), settings, encoder, tmp_path / "v1", lambda _: None)
    found = again.manifest["certificate"]
    shipped = Judge.load(ARTEFACTS / "router/v1", encoder).certificate
    assert found["status"] == shipped.status == "certified"
    # int8 kernels of other processors round otherwise; the decision must be nearly the same.
    assert found["n"] == pytest.approx(shipped.n, rel=0.1)
    assert shipped.tau is not None
    assert found["tau"] == pytest.approx(shipped.tau, rel=0.5)


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_student_can_be_trained_for_real(tmp_path: Path) -> None:
    """TRL and PEFT, twelve rows, one pass: the command, the manifest, the immutability."""
    command = [
        str(STUDENT_PYTHON.parent / "understudy"), "student", "train",
        "--name", "banking-intents@v2", "--data", str(ROWS / "train.jsonl.gz"),
        "--base", str(ROOT / ".cache/base/smollm2-135m-instruct"),
        "--out", str(tmp_path / "v2"), "--limit", "32", "--epochs", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "v2/manifest.json").read_text())
    assert manifest["rows"] == 32
    assert manifest["metrics"]["train_loss"] > 0
    for name, digest in manifest["files"].items():
        assert file_sha256(tmp_path / "v2" / name) == digest
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert again.returncode == 1
    assert "immutable" in again.stderr
