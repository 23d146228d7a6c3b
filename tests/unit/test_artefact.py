"""Artefacts that were tampered with are refused with one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from router.artefact import load_artefact
from router.encoder import MiniLM, load_encoders
from router.errors import ArtefactError
from router.judge import Judge
from tests.fakes.rig import ARTEFACTS, CACHE

SHIPPED = ARTEFACTS / "router/v1"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A writable copy of the shipped artefact."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "v1"))


def rehashed(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Rewrite the manifest with correct hashes: an attacker would do so too."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        if (folder / name).is_file():
            manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(folder: Path) -> str:
    """The sentence of the refusal."""
    with pytest.raises(ArtefactError) as caught:
        Judge(load_artefact(folder), load_encoders(CACHE))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_is_noticed(copy: Path) -> None:
    path = copy / "router.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    assert "sha256" in refused(copy)


def test_truncated_and_missing_files(copy: Path) -> None:
    path = copy / "router.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    rehashed(copy, lambda _: None)
    assert "not safetensors" in refused(copy)
    path.unlink()
    assert "cannot be read: No such file" in refused(copy)
    (copy / "manifest.json").unlink()
    assert "manifest.json: cannot be read" in refused(copy)


def test_numbers_that_are_not_finite(copy: Path) -> None:
    tensors = load_file(copy / "router.safetensors")
    tensors["second.combine.coef"][0] = np.nan
    save_file(tensors, copy / "router.safetensors")
    rehashed(copy, lambda _: None)
    assert "'second.combine.coef' holds a number that is not finite" in refused(copy)


def test_tensors_that_do_not_fit_each_other(copy: Path) -> None:
    for name, shape in [
        ("first.projection.weight", (7, 256)),
        ("second.points", (10, 7)),
        ("second.head.coef", (2, 1152)),
        ("second.projection.points", (10, 7)),
    ]:
        whole = load_file(copy / "router.safetensors")
        save_file({**whole, name: np.zeros(shape, whole[name].dtype)}, copy / "router.safetensors")
        rehashed(copy, lambda _: None)
        assert "lacks a part" in refused(copy)
        save_file(whole, copy / "router.safetensors")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "extra.bin"])
def test_files_outside_the_folder_are_never_opened(copy: Path, name: str) -> None:
    def add(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files[name] = "0" * 64

    rehashed(copy, add)
    assert "must list exactly" in refused(copy)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format", "understudy-router/9", "is not 'understudy-router/2'"),
        ("encoders", {"static": "0" * 64, "sentence": ""}, "fitted with static encoder 0000"),
        ("bands", {"low": 0.1}, "lacks a part"),
        ("slots", {"date": "("}, "not a regular expression"),
        ("reference", {"edges": [2, 1], "counts": [1, 1, 1]}, "do not fit each other"),
        ("certificate", {"status": "certified"}, "lacks a part"),
        ("classes", ["only", "two"], "lacks a part"),
        ("gate_tokens", "many", "lacks a part"),
    ],
)
def test_a_manifest_that_does_not_fit(copy: Path, key: str, value: object, expected: str) -> None:
    rehashed(copy, lambda manifest: manifest.update({key: value}))
    assert expected in refused(copy)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 10_000])
def test_a_manifest_that_is_no_object(copy: Path, raw: bytes) -> None:
    (copy / "manifest.json").write_bytes(raw)
    assert "manifest.json" in refused(copy)


def test_an_unreadable_encoder_cache_is_named(tmp_path: Path) -> None:
    from router.errors import EncoderError

    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderError, match="cannot write the encoder cache"):
        load_encoders(tmp_path / "file" / "below")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(EncoderError, match="cannot load the encoder"):
        MiniLM(tmp_path / "bad.onnx", tmp_path / "none.json", "x")
