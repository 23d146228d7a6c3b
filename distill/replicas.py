"""Student servers as the nightly loop uses them: load a version, look, unload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LOAD_S = 180.0
"""The first request to a new adapter compiles for seconds."""
LIST_S = 10.0


class ReplicaError(Exception):
    """A replica cannot be reached, or does not take the version."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load gave: where the version answers, and where it could not be loaded."""

    ready: list[str]
    failed: dict[str, str]


def load_everywhere(urls: Sequence[str], name: str, folder: Path) -> Loaded:
    """Load a version into every replica and let each answer once. Loading again changes nothing:
    a version's name stands for one folder for ever.

    Raises:
        ReplicaError: no replica has it.
    """
    ready: list[str] = []
    failed: dict[str, str] = {}
    for url in urls:
        try:
            _load(url, name, folder)
            ready.append(url)
        except (ReplicaError, httpx.HTTPError) as error:
            failed[url] = str(error) or type(error).__name__
    if not ready:
        raise ReplicaError(
            f"{name} could not be loaded into any replica: "
            + "; ".join(f"{url}: {why}" for url, why in failed.items())
        )
    return Loaded(ready, failed)


def unload_everywhere(urls: Sequence[str], name: str) -> list[str]:
    """Unload a version where it is; the replicas where that did not work."""
    left = []
    for url in urls:
        try:
            with httpx.Client(base_url=url, timeout=LIST_S) as client:
                if name in _listed(client):
                    client.post("/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
        except (ReplicaError, httpx.HTTPError):
            left.append(url)
    return left


def base_of(url: str) -> str | None:
    """The name by which a replica answers without an adapter; None where it names none.

    vLLM's list gives each adapter its base as ``parent``, and the base none.

    Raises:
        ReplicaError: it cannot be asked.
    """
    try:
        with httpx.Client(base_url=url, timeout=LIST_S) as client:
            return next((m["id"] for m in _models(client) if m.get("parent") is None), None)
    except httpx.HTTPError as error:
        raise ReplicaError(f"{url}: {error or type(error).__name__}") from error


def _load(url: str, name: str, folder: Path) -> None:
    with httpx.Client(base_url=url, timeout=LOAD_S) as client:
        if name not in _listed(client):
            answer = client.post(
                "/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder.resolve())}
            )
            if answer.status_code != 200 and "already been loaded" not in answer.text:
                raise ReplicaError(f"{answer.status_code}: {answer.text[:200]}")
        probe = {
            "model": name, "messages": [{"role": "user", "content": "ok"}], "max_tokens": 4,
            "temperature": 0, "logprobs": True, "top_logprobs": 5,
        }  # fmt: skip
        answer = client.post("/chat/completions", json=probe)
        if answer.status_code != 200:
            raise ReplicaError(f"loaded, but a probe got {answer.status_code}: {answer.text[:200]}")


def _listed(client: httpx.Client) -> set[str]:
    return {model["id"] for model in _models(client)}


def _models(client: httpx.Client) -> list[dict[str, Any]]:
    answer = client.get("/models", timeout=LIST_S)
    answer.raise_for_status()
    try:
        return [{**model, "id": str(model["id"])} for model in answer.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ReplicaError("/models gave no list of models") from error
