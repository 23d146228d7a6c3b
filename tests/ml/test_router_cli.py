"""``understudy router``: fit and evaluate as a user types them, without any student."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router.rows import read_rows, write_rows
from tests.fakes.rig import ARTEFACTS, ROOT

CLINC150 = ROOT / "tests/data/clinc150"
ROWS = ROOT / "tests/data/banking-intents"


def understudy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    line = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)


def labelled(
    name: str, intents: set[str] | None, each: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Rows of a CLINC150 split, at most ``each`` per label."""
    rows = read_rows(CLINC150 / f"{name}.jsonl.gz")
    rng.shuffle(rows)
    seen: dict[str, int] = {}
    out = []
    for row in rows:
        label = row.completion or ""
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= each and (intents is None or label in intents):
            out.append({"text": row.text, "label": label})
    return out


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distance-only artefact over 40 intents, in-domain rows only."""
    folder = tmp_path_factory.mktemp("fit")
    rng = random.Random(5)
    names = sorted({r.completion or "" for r in read_rows(CLINC150 / "train.jsonl.gz")})
    intents = set(rng.sample(names, 40))
    for name, split, each in (("train", "train", 50), ("combine", "val", 8)):
        write_rows(folder / f"{name}.jsonl.gz", labelled(split, intents, each, rng))
    rows = labelled("val", intents, 20, rng)
    taken = {r.text for r in read_rows(folder / "combine.jsonl.gz")}
    write_rows(folder / "calibrate.jsonl.gz", [r for r in rows if r["text"] not in taken])
    outside = labelled("oos_test", None, 300, rng)
    write_rows(folder / "eval.jsonl", labelled("test", intents, 30, rng) + outside)
    done = understudy(
        "router", "fit", "--task", "t", "--train", f"{folder}/train.jsonl.gz",
        "--combine", f"{folder}/combine.jsonl.gz", "--calibrate", f"{folder}/calibrate.jsonl.gz",
        "--out", f"{folder}/router/v1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["status"] == "none"
    assert "no student answers" in result["reason"]
    return folder


def test_distance_alone_separates_out_of_scope_text(fitted: Path) -> None:
    done = understudy(
        "router", "evaluate", "--artefact", f"{fitted}/router/v1", "--in", f"{fitted}/eval.jsonl",
        "--out", f"{fitted}/scores.jsonl", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["n"] == 40 * 30 + 300
    assert metrics["n_out"] == 300
    assert metrics["auroc"] > 95
    assert metrics["fpr95"] < 25
    assert 0 < metrics["decision_us_p50"] <= metrics["decision_us_p99"]
    scores = [json.loads(line) for line in (fitted / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == metrics["n"]
    assert all(0 <= row["score"] <= 1 for row in scores)
    outside = sorted(row["score"] for row in scores if row["out"])
    inside = sorted(row["score"] for row in scores if not row["out"])
    assert outside[len(outside) // 2] > 0.5 > inside[len(inside) // 2]


def test_open_answers_fit_too(tmp_path: Path) -> None:
    """No closed set of labels: similarity alone carries the score."""
    texts = [r.text for r in read_rows(ROWS / "train.jsonl.gz")][:600]
    rows = [
        {"messages": [{"role": "user", "content": t}], "completion": f"Answer to: {t}"}
        for t in texts
    ]
    for name, part in (
        ("train", rows[:400]),
        ("combine", rows[400:500]),
        ("calibrate", rows[500:]),
    ):
        write_rows(tmp_path / f"{name}.jsonl", part)
    done = understudy(
        "router", "fit", "--task", "t", "--train", f"{tmp_path}/train.jsonl",
        "--combine", f"{tmp_path}/combine.jsonl", "--calibrate", f"{tmp_path}/calibrate.jsonl",
        "--out", f"{tmp_path}/r",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    probe = [{"text": t, "out": False} | {"label": "x"} for t in texts[500:]]
    probe += [{"text": r["text"], "label": "y", "out": True} for r in
              labelled("oos_test", None, 100, random.Random(1))]  # fmt: skip
    write_rows(tmp_path / "probe.jsonl", probe)
    done = understudy(
        "router",
        "evaluate",
        "--artefact",
        f"{tmp_path}/r",
        "--in",
        f"{tmp_path}/probe.jsonl",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["auroc"] > 90


def test_with_student_answers_coverage_and_agreement_are_told() -> None:
    done = understudy(
        "router", "evaluate", "--artefact", str(ARTEFACTS / "router/v1"),
        "--in", str(ROWS / "calibrate.jsonl.gz"), "--json",
    )  # fmt: skip
    metrics = json.loads(done.stdout)
    certificate = json.loads((ARTEFACTS / "router/v1/manifest.json").read_text())["certificate"]
    assert metrics["coverage"] == pytest.approx(certificate["coverage"], abs=0.01)
    assert metrics["agreement"] == pytest.approx(1 - certificate["k"] / certificate["n"], abs=0.01)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--train": "none.jsonl"}, "none.jsonl: cannot be read"),
        ({"--combine": str(ROWS / "train.jsonl.gz")}, "are also training rows"),
        ({"--out": str(ARTEFACTS / "router/v1")}, "exists already"),
        ({"--student": "http://127.0.0.1:9/v1"}, "--student needs --student-model"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_a_sentence(
    tmp_path: Path, change: dict[str, str], sentence: str
) -> None:
    options = {
        "--task": "t", "--train": str(ROWS / "train.jsonl.gz"),
        "--combine": str(ROWS / "combine.jsonl.gz"),
        "--calibrate": str(ROWS / "calibrate.jsonl.gz"),
        "--out": str(tmp_path / "v1"), **change,
    }  # fmt: skip
    done = understudy("router", "fit", *(part for pair in options.items() for part in pair))
    assert done.returncode != 0
    assert sentence in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "v1").exists()


def test_explain_says_which_feature_decided_and_what_is_near(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        (ROOT / "deploy/demo/understudy.yaml").read_text().replace("../../", f"{ROOT}/")
    )
    done = understudy(
        "explain", "--config", str(config), "what is my apr", "--no-ask-student", "--json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["nearest"][0]["completion"] == "apr"
    assert result["ood_score"] < 0.1
    assert set(result["weighed"]) == {"projected_similarity", "similarity", "energy"}
    far = understudy("explain", "--config", str(config), "sing me a sea shanty about whales")
    assert "teacher, ood" in far.stdout
