"""The routing artefact: a folder of ``manifest.json``, safetensors and the training prompts.

No pickle. Every file is hashed in the manifest and verified on load; the manifest's own digest is
the artefact's identity in headers, logs and exchanges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.errors import ArtefactError
from router.folders import new_folder

FORMAT = "understudy-router/2"
MANIFEST = "manifest.json"
TENSORS = "router.safetensors"
PROMPTS = "prompts.json"
_FILES = frozenset({TENSORS, PROMPTS})
_MAX_BYTES = 4 << 30

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Artefact:
    """A verified artefact in memory."""

    path: Path
    manifest: Mapping[str, Any]
    tensors: Tensors
    prompts: tuple[Mapping[str, Any], ...]
    digest: str

    @property
    def version(self) -> str:
        """``v1-1a2b3c4d``: the stated version and eight digits of the manifest's digest."""
        return f"{self.manifest['version']}-{self.digest[:8]}"


def save_artefact(
    out: Path, manifest: dict[str, Any], tensors: Tensors, prompts: list[dict[str, Any]]
) -> Artefact:
    """Write a new folder by one rename, then load it back.

    Raises:
        ArtefactError: the folder exists or cannot be written.
    """
    if out.exists():
        raise ArtefactError(
            f"{out}: exists already; an artefact is immutable, choose another --out"
        )
    try:
        with new_folder(out) as staging:
            _write(staging, manifest, tensors, prompts)
    except OSError as error:
        raise ArtefactError(f"{out}: cannot be written: {error}") from error
    return load_artefact(out)


def load_artefact(path: Path) -> Artefact:
    """Read and verify an artefact.

    Raises:
        ArtefactError: a file is missing, its hash differs, the format is unknown, the tensors
            hold a number that is not finite, or a file name points outside the folder.
    """
    raw = _read(path / MANIFEST)
    manifest = _parse(raw, path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"{path}: format {manifest.get('format')!r} is not {FORMAT!r}; fit it again"
        )
    contents = _verified(path, manifest.get("files"))
    prompts = _parse_any(contents[PROMPTS], path / PROMPTS)
    if not isinstance(prompts, list):
        raise ArtefactError(f"{path / PROMPTS}: must be a list")
    return Artefact(
        path,
        manifest,
        _tensors(contents[TENSORS], path / TENSORS),
        tuple(prompts),
        hashlib.sha256(raw).hexdigest(),
    )


def _write(
    folder: Path, manifest: dict[str, Any], tensors: Tensors, prompts: list[dict[str, Any]]
) -> None:
    from safetensors.numpy import save

    payload = {
        TENSORS: save({name: np.ascontiguousarray(value) for name, value in tensors.items()}),
        PROMPTS: json.dumps(prompts, ensure_ascii=False, indent=0).encode() + b"\n",
    }
    for name, data in payload.items():
        (folder / name).write_bytes(data)
    files = {name: hashlib.sha256(data).hexdigest() for name, data in payload.items()}
    whole = {"format": FORMAT, **manifest, "files": files}
    (folder / MANIFEST).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def _verified(path: Path, files: Any) -> dict[str, bytes]:
    if not isinstance(files, dict) or set(files) != _FILES:
        raise ArtefactError(f"{path}: the manifest must list exactly {', '.join(sorted(_FILES))}")
    contents = {}
    for name, expected in files.items():
        contents[name] = _read(path / name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise ArtefactError(
                f"{path / name}: sha256 is {found[:16]}…, the manifest says {str(expected)[:16]}…"
            )
    return contents


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ArtefactError(f"{path}: larger than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    value = _parse_any(raw, path)
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: must be a JSON object")
    return value


def _parse_any(raw: bytes, path: Path) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: not JSON: {error}") from error


def _tensors(raw: bytes, path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, npt.NDArray[Any]] = load(raw)
    except (SafetensorError, ValueError) as error:
        raise ArtefactError(f"{path}: not safetensors: {error}") from error
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ArtefactError(f"{path}: tensor {name!r} holds a number that is not finite")
    return tensors
