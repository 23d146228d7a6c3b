"""The encoder's graph against the same network step by step, in single precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file
from scipy.special import erf, softmax
from tokenizers import Tokenizer

from router.encoder import PACKAGE
from router.folders import package_file
from router.minilm import HEADS, HIDDEN, LAYERS, POOLED
from tests.fakes.rig import encoders

Floats = npt.NDArray[np.float32]


def reference(ids: list[int], tensors: dict[str, Floats]) -> Floats:
    """BERT's encoder (Devlin et al., arXiv 1810.04805), and the mean over tokens of some layers."""

    def linear(value: Floats, name: str) -> Floats:
        found: Floats = value @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        return found

    def norm(value: Floats, name: str) -> Floats:
        centred = value - value.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-12)
        found: Floats = scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
        return found

    def heads(value: Floats) -> Floats:
        return value.reshape(len(ids), HEADS, HIDDEN // HEADS).transpose(1, 0, 2)

    table = "embeddings.{}_embeddings.weight"
    words, places, kinds = (
        tensors[table.format(name)] for name in ("word", "position", "token_type")
    )
    value = norm(words[ids] + places[: len(ids)] + kinds[0], "embeddings.LayerNorm")
    pooled = []
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        query, key, content = (
            heads(linear(value, f"{layer}.attention.self.{name}"))
            for name in ("query", "key", "value")
        )
        weights = softmax(query @ key.transpose(0, 2, 1) / (HIDDEN // HEADS) ** 0.5, axis=-1)
        mixed = (weights @ content).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        attended = linear(mixed, f"{layer}.attention.output.dense")
        middle = norm(attended + value, f"{layer}.attention.output.LayerNorm")
        wide = linear(middle, f"{layer}.intermediate.dense")
        active = wide * 0.5 * (1 + erf(wide / 2**0.5))
        value = norm(linear(active, f"{layer}.output.dense") + middle, f"{layer}.output.LayerNorm")
        if number + 1 in POOLED:
            mean = value.mean(axis=0)
            pooled.append(mean / np.linalg.norm(mean))
    return np.array(pooled)


@pytest.mark.parametrize(
    "text", ["apr", "what is the apr on my card", "Ünïcode, and a rather longer request " * 6]
)
def test_each_pooled_layer_is_the_network_s(text: str) -> None:
    weights, tokenizer = (
        package_file(PACKAGE, name) for name in ("model.safetensors", "tokenizer.json")
    )
    assert weights is not None
    assert tokenizer is not None
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    expected = reference(reader.encode(text).ids, load_file(weights))
    parts = encoders().sentence.encode([text])[0].reshape(len(POOLED), HIDDEN) * len(POOLED) ** 0.5
    # Eight bits round: 0.988 to 0.997 is usual of a layer.
    for part, layer in zip(parts, expected, strict=True):
        assert float(part @ layer) > 0.98
