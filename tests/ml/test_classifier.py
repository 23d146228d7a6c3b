"""The classifier student: trained, kept, loaded, served like any other."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI

from deploy.demo.task import INTENTS, load
from distill.classifier import (
    Classifier,
    ClassifierError,
    ClassifierSettings,
    labels_of,
    load_classifier,
    train_classifier,
)
from distill.classifier_server import create_classifier_app
from router.rows import Row
from router.template import Message
from tests.fakes.rig import encoders, serving
from tests.fakes.traffic import CLINC150


def rows(split: str, per_label: int) -> list[Row]:
    found: dict[str, list[Row]] = {}
    for utterance in load(CLINC150, split):
        if utterance.label in INTENTS:
            row = Row((Message("user", utterance.text),), utterance.label)
            found.setdefault(utterance.label, []).append(row)
    return [row for label in sorted(found) for row in found[label][:per_label]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "v1"
    train_classifier(
        "t@v1", rows("train", 12), rows("val", 3), encoders(), out, ClassifierSettings()
    )
    return out


def agreement(student: Classifier, test: Sequence[Row]) -> float:
    return sum(student.answer(row.text).text == row.completion for row in test) / len(test)


def test_a_few_rows_of_each_answer_are_enough(folder: Path) -> None:
    student = load_classifier(folder, encoders())
    assert agreement(student, rows("test", 10)) > 0.85
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == 360
    assert manifest["metrics"]["dev_agreement"] > 0.8
    assert len(manifest["metrics"]["tried"]) == 6


def test_what_is_loaded_is_what_was_trained(folder: Path) -> None:
    """Dev agreement in memory, and from the file: the weights lie in the file as they should."""
    student = load_classifier(folder, encoders())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert agreement(student, rows("val", 3)) == pytest.approx(
        manifest["metrics"]["dev_agreement"], abs=1e-4
    )


def test_the_same_rows_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "v1"
    train_classifier(
        "t@v1", rows("train", 12), rows("val", 3), encoders(), again, ClassifierSettings()
    )
    assert (again / "head.safetensors").read_bytes() == (folder / "head.safetensors").read_bytes()


def test_log_probabilities_are_those_of_the_head(folder: Path) -> None:
    student = load_classifier(folder, encoders())
    answer = student.answer("what is my apr")
    (token,) = answer.tokens
    assert answer.text == token.token == "apr"
    assert token.logprob == token.top[0]
    assert list(token.top) == sorted(token.top, reverse=True)
    assert sum(math.exp(v) for v in token.top) <= 1.0 + 1e-6
    assert student.answer("colourless green ideas").tokens[0].logprob < token.logprob


def test_two_answers_are_a_set_too(tmp_path: Path) -> None:
    two = [r for r in rows("train", 20) if r.completion in ("apr", "balance")]
    train_classifier("t@v1", two, [], encoders(), tmp_path / "v1", ClassifierSettings())
    student = load_classifier(tmp_path / "v1", encoders())
    probabilities = [math.exp(v) for _, v in student.alternatives("what is my apr")]
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    assert agreement(student, two) > 0.95


def test_open_answers_are_no_closed_set(tmp_path: Path) -> None:
    free = [replace(r, completion=f"{n}") for n, r in enumerate(rows("train", 3))]
    assert labels_of(free) == []
    with pytest.raises(ClassifierError, match="no closed set"):
        train_classifier("t@v1", free, [], encoders(), tmp_path / "v1", ClassifierSettings())
    assert not (tmp_path / "v1").exists()


def test_a_changed_file_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "v1"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    raw = bytearray((copy / "head.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "head.safetensors").write_bytes(raw)
    with pytest.raises(ClassifierError, match="was changed after training"):
        load_classifier(copy, encoders())
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ClassifierError, match="is no classifier"):
        load_classifier(copy, encoders())


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving(create_classifier_app(encoders())) as found:
        yield found


async def test_it_speaks_openais_format(url: str, folder: Path) -> None:
    async with httpx.AsyncClient(base_url=f"{url}/v1") as http:
        body = {"lora_name": "t@v1", "lora_path": str(folder)}
        assert (await http.post("/load_lora_adapter", json=body)).status_code == 200
        again = await http.post("/load_lora_adapter", json=body)
        assert again.status_code == 400
        assert "already been loaded" in again.text
        assert [m["id"] for m in (await http.get("/models")).json()["data"]] == ["t@v1"]
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        asked = {
            "model": "t@v1", "messages": [{"role": "user", "content": "what is my apr"}],
            "logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 16,
        }  # fmt: skip
        whole = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
        assert whole.choices[0].message.content == "apr"
        assert whole.choices[0].finish_reason == "stop"
        (token,) = whole.choices[0].logprobs.content
        assert len(token.top_logprobs) == 3
        stream = await client.chat.completions.create(  # type: ignore[call-overload]
            **asked, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "apr"
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, "stop"]
    streamed = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    assert np.isclose(streamed[0].content[0].logprob, token.logprob)
    assert chunks[-1].usage.completion_tokens == 1


async def test_what_it_cannot_serve_is_said(url: str, folder: Path, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=f"{url}/v1") as http:
        missing = {"lora_name": "x@v1", "lora_path": str(tmp_path)}
        assert (await http.post("/load_lora_adapter", json=missing)).status_code == 404
        assert (await http.post("/unload_lora_adapter", json=missing)).status_code == 404
        chat = {"model": "x@v1", "messages": [{"role": "user", "content": "a"}]}
        unknown = await http.post("/chat/completions", json=chat)
        assert unknown.status_code == 404
        assert "does not exist" in unknown.json()["error"]["message"]
        bad = await http.post("/chat/completions", json={"model": 3})
        assert bad.status_code == 400
        assert bad.json()["error"]["message"].startswith("model:")
        body = {"lora_name": "t@v1", "lora_path": str(folder)}
        await http.post("/load_lora_adapter", json=body)
        empty = {"model": "t@v1", "messages": [{"role": "system", "content": "a"}]}
        assert (await http.post("/chat/completions", json=empty)).status_code == 400
        assert (await http.post("/unload_lora_adapter", json=body)).status_code == 200
        assert (await http.get("/models")).json()["data"] == []
