"""Take single prompts out of an artefact: their texts, their vectors, their places in the indexes.

Centres of classes (categorical tasks) are means of many prompts and stay. Where single prompts are
compared with, fewer of them can only make a prompt look farther away, and so send it to the
teacher: what is served shrinks, and the certificate is kept until the next fit; the manifest says
how many prompts it has forgotten since.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from router.artefact import Artefact, load_artefact, save_artefact
from router.errors import ArtefactError
from router.index import PromptIndex

_TIERS = ("first", "second")


def forget_prompts(folder: Path, texts: Collection[str]) -> tuple[int, int]:
    """Put an artefact without these prompts in the place of the one in ``folder``.

    Returns:
        How many prompts were taken out, and how many points of indexes; the artefact is untouched
        where there are none.

    Raises:
        ArtefactError: the artefact cannot be read or written, or nothing would be left of it.
    """
    artefact = load_artefact(folder)
    wanted = {text.strip() for text in texts}
    gone = [i for i, p in enumerate(artefact.prompts) if str(p["text"]).strip() in wanted]
    if not gone:
        return 0, 0
    if len(gone) == len(artefact.prompts):
        raise ArtefactError(f"{folder}: every prompt is to be forgotten; fit a new artefact")
    keep = np.setdiff1d(np.arange(len(artefact.prompts)), gone)
    tensors, points = _without(artefact, gone, keep)
    kept = [dict(artefact.prompts[i]) for i in keep]
    manifest = {k: v for k, v in artefact.manifest.items() if k not in {"format", "files"}}
    manifest["forgotten"] = int(manifest.get("forgotten", 0)) + len(gone)
    _replace(folder, manifest, tensors, kept)
    return len(gone), points


def _without(artefact: Artefact, gone: list[int], keep: Any) -> tuple[dict[str, Any], int]:
    tensors = dict(artefact.tensors)
    count, points = len(artefact.prompts), 0
    tensors["prompts"] = tensors["prompts"][keep]
    for tier in _TIERS:
        # Points that are the prompts themselves come in their order; centres are fewer.
        name = f"{tier}.points"
        if name in tensors and len(tensors[name]) == count and not artefact.manifest["classes"]:
            tensors[name] = tensors[name][keep]
            points += len(gone)
        if (raw := tensors.get(f"{tier}.index")) is not None:
            index = PromptIndex.restored(raw, _width(raw))
            tensors[f"{tier}.index"] = index.without(gone).state()
            points += len(gone)
    return tensors, points


def _width(raw: Any) -> int:
    from usearch.index import Index

    found = Index.metadata(raw.tobytes())
    if found is None:
        raise ArtefactError("the index cannot be read")
    return int(found["dimensions"])


def _replace(
    folder: Path, manifest: dict[str, Any], tensors: dict[str, Any], prompts: list[dict[str, Any]]
) -> None:
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    try:
        for left in (new, old):  # of an attempt that was cut
            shutil.rmtree(left, ignore_errors=True)
        save_artefact(new, manifest, tensors, prompts)
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old)
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be replaced: {error}") from error
